"""JavaScript programs, which lie where their packages do."""

from server import ROOT


def command(text, *arguments):
    """What runs a program; one at a time."""
    # Packages are found from where it lies.
    program = ROOT / "target/clients/js/program.mjs"
    program.write_text(text)
    return ["node", program, *arguments]

#!/usr/bin/env python3
"""What the driver's compiler makes of the committed PTX, judged without a GPU: no spills, as few registers as the grid takes for granted,
and weights asked for together, before the first of them is multiplied, and before the kernel before is waited for where kernels overlap. Prints a line for each kernel, and what is wrong last.

    python3 -m pip install nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-nvdisasm==13.5.37
    python3 check_machine_code.py

A driver brings a compiler of its own, older or newer than this one: what holds here is likely there, and not certain.
"""
import glob, os, re, subprocess, sys, tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ARCHITECTURES = ["sm_80", "sm_86", "sm_90", "sm_120"]
# Those whose kernels overlap, for which `src/cuda.rs` makes PTX of what stands in comments: what waits is this instruction.
OVERLAPPING, WAIT = ["sm_90", "sm_120"], r"\bACQBULK\b"
# Of a multiprocessor, and of what is given to a warp at a time.
REGISTERS, REGISTERS_OF_A_WARP = 65536, 256
# Blocks that `Launch::project` in `src/cuda.rs` puts on a multiprocessor; of other kernels one must fit.
BLOCKS = {"project_rows": 2, "project_normed": 2}
# A load of 16 bytes of weights, which bypass the first-level cache.
LOAD = r"\bLDG\S*\.NA\.128\b"
# Loads that bring eight elements, and what stands for a product of them: f32 has no tensor cores, and goes through shared memory.
ELEMENTS = {"f32": (2, r"\bSTS\b"), "f16": (1, r"\bHMMA\b"), "bf16": (1, r"\bHMMA\b"), "int8": (1, r"\bIMMA\b")}


def tool(package, name):
    found = [path for folder in sys.path for path in glob.glob(os.path.join(folder, "nvidia", package, "bin", name))]
    return found[0] if found else sys.exit(f"{name} not found: see the top of {__file__}")


def compile_for(architecture, element):
    """The machine code as text, and what the compiler says of each kernel."""
    text = ptx_of(element)
    if architecture in OVERLAPPING:
        text = text.replace(".target sm_80", ".target sm_90", 1).replace("//overlap ", "")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin, tempfile.NamedTemporaryFile("w", suffix=".ptx") as ptx:
        ptx.write(text)
        ptx.flush()
        ptxas = [tool("cuda_nvcc", "ptxas"), "-v", f"-arch={architecture}", ptx.name, "-o", cubin.name]
        told = subprocess.run(ptxas, check=True, capture_output=True, text=True).stderr
        disassemble = [tool("cu13", "nvdisasm"), cubin.name]
        return subprocess.run(disassemble, check=True, capture_output=True, text=True).stdout, told


def loads_before_waiting(code):
    """Of weights; none where nothing waits."""
    parts = re.split(WAIT, code)
    return len(re.findall(LOAD, parts[0])) if len(parts) > 1 else 0


def loads_together(code, product):
    """The fewest loads of weights that follow one another before a product."""
    runs = [0]
    for line in code.splitlines():
        if re.search(product, line):
            runs.append(0)
        elif re.search(LOAD, line):
            runs[-1] += 1
    return min((run for run in runs if run), default=0)


def main():
    source = open(os.path.join(HERE, "project.h"), encoding="utf-8").read()
    # For f32, and for the others.
    ahead = dict(zip([True, False], map(int, re.findall(r"#define AHEAD (\d+)", source))))
    wrong = []
    for architecture in ARCHITECTURES:
        for element, (loads_of_eight, product) in ELEMENTS.items():
            text, told = compile_for(architecture, element)
            codes = dict(re.findall(r"^\.text\.(\w+):\n(.*?)(?=^\t\.section|\Z)", text, re.M | re.S))
            threads = dict(re.findall(r"\.entry (\w+)\(.*?\.maxntid (\d+)", ptx_of(element), re.S))
            for kernel, spilt, registers in re.findall(
                r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", told, re.S
            ):
                spilt, of_block = int(spilt), int(threads[kernel]) // 32 * warp_registers(int(registers))
                blocks = BLOCKS.get(kernel, 1)
                together = loads_together(codes[kernel], product) if kernel in BLOCKS else None
                place = f"{architecture} {element} {kernel}"
                loads = "" if together is None else f", {together} loads together"
                print(f"{place}: {registers} registers, {spilt} bytes spilt{loads}")
                if spilt:
                    wrong.append(f"{place} spills {spilt} bytes")
                if blocks * of_block > REGISTERS:
                    wrong.append(f"{place}: {blocks} blocks do not fit a multiprocessor with {registers} registers a thread")
                wanted = ahead[element == "f32"] * loads_of_eight
                if kernel in BLOCKS and architecture in OVERLAPPING and loads_before_waiting(codes[kernel]) < wanted:
                    wrong.append(f"{place} asks for less than {wanted} loads of weights before it waits")
                if together is not None and together < wanted:
                    wrong.append(f"{place} asks for {together} loads of weights together, not {wanted}")
    if wrong:
        sys.exit("\n".join(wrong))


def ptx_of(element):
    return open(os.path.join(HERE, "ptx", f"decoder_{element}.ptx"), encoding="utf-8").read()


def warp_registers(of_thread):
    return -(-32 * of_thread // REGISTERS_OF_A_WARP) * REGISTERS_OF_A_WARP


if __name__ == "__main__":
    main()

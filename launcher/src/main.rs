//! `nanoinfer-launch`: see [`nanoinfer_launch::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    nanoinfer_launch::cli::main_with(std::env::args_os())
}

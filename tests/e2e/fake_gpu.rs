//! The CUDA libraries of `tests/fake_gpu`, compiled once: a driver that runs the kernels' own sources on the CPU and logs what is asked
//! of it, and NCCL between processes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use crate::server::{launcher, root};

/// The libraries' names, as they are looked for.
pub(crate) const DRIVER: &str = "libcuda.so.1";
pub(crate) const NCCL: &str = "libnccl.so.2";

/// A folder with both libraries.
pub(crate) fn libraries() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| compile("sound", &[]))
}

/// The same, compiled with further options, in a folder of its own.
pub(crate) fn compile(name: &str, options: &[&str]) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fake-gpu-{name}"));
    fs::create_dir_all(&folder).unwrap();
    let (fake, kernels) = (root().join("tests/fake_gpu"), root().join("worker/kernels/cuda"));
    let cc = |arguments: &[&str]| {
        let mut command = Command::new("cc");
        command
            .current_dir(&folder)
            .args(["-O2", "-fPIC", "-Wall", "-Wextra", "-Werror"])
            // Which takes a jump from one fiber to another for a fault.
            .arg("-U_FORTIFY_SOURCE")
            .args(options);
        command.arg("-I").arg(&fake).arg("-I").arg(&kernels).args(arguments);
        let output = command.output().expect("a C compiler, as the README asks for");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let source = |file: &str| fake.join(file).to_str().unwrap().to_owned();
    let all_kernels = kernels.join("decoder.cu");
    for (element, weights) in [("32", "32"), ("16", "16"), ("19", "19"), ("19", "8")] {
        let defines = [format!("-DELEMENT={element}"), format!("-DWEIGHTS={weights}")];
        let object = format!("kernels-{weights}.o");
        cc(&["-x", "c", "-c", &defines[0], &defines[1], all_kernels.to_str().unwrap(), "-o", &object]);
    }
    let library = |name: &str, sources: &[&str]| {
        let soname = format!("-Wl,-soname,{name}");
        cc(&[&["-shared", &soname, "-o", name], sources, &["-lm", "-lpthread"]].concat());
    };
    let (driver, emulator) = (source("driver.c"), source("emulator.c"));
    library(DRIVER, &[&driver, &emulator, "kernels-32.o", "kernels-16.o", "kernels-19.o", "kernels-8.o"]);
    library(NCCL, &[&source("nccl.c"), "-L.", "-l:libcuda.so.1"]);
    folder
}

/// The launcher among the libraries of `folder`, with settings of the fake driver.
pub(crate) fn launcher_with(folder: &Path, settings: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = launcher(arguments);
    command.env("LD_LIBRARY_PATH", folder).envs(settings.iter().copied());
    command
}

/// A folder with some of the libraries only.
pub(crate) fn only(libraries_wanted: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for library in libraries_wanted {
        fs::copy(libraries().join(library), folder.path().join(library)).unwrap();
    }
    folder
}

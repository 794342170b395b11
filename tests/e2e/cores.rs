//! Which CPUs threads run on: as the plan says, and nothing breaks where the system gives none.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::Command,
};

use crate::server::{Server, launcher, run_to_end, through};

/// CPUs that the first thread of a process may run on, as the kernel lists them.
fn allowed_cpus(pid: u32) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

#[test]
fn ranks_run_where_the_plan_puts_them() {
    let plan = String::from_utf8(launcher(&["--nproc", "2", "--plan"]).output().unwrap().stdout).unwrap();
    let told = plan.lines().find(|line| line.contains("stay")).unwrap_or_else(|| panic!("nothing of CPUs in {plan}"));
    let server = Server::start(&["--nproc", "2"]);
    let whole = allowed_cpus(server.pid());
    for (rank, pid) in server.rank_pids().into_iter().enumerate() {
        // The thread that leads a rank stays on the first of its CPUs, or on none in particular.
        let allowed = allowed_cpus(pid);
        match told.split(&format!("rank {rank} on ")).nth(1) {
            Some(cpus) => {
                let first = cpus.split([' ', ';', ',', '-']).next().unwrap();
                assert_eq!(allowed, first, "{told}");
            }
            None => assert_eq!(allowed, whole, "{told}"),
        }
    }
}

#[test]
fn threads_that_the_system_does_not_give_are_an_error_in_words() {
    // The limit counts all processes of a user, and does not hold for root: it takes a user who has none.
    if !rustix::process::geteuid().is_root() {
        return eprintln!("left out: only root can become another user");
    }
    let folder = tempfile::tempdir().unwrap();
    let open_to_all = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    open_to_all(folder.path());
    let program = folder.path().join("nanoinfer-launch");
    for nproc in ["1", "2"] {
        let served = launcher(&["--nproc", nproc, "--threads", "64"]);
        fs::copy(served.get_program(), &program).unwrap();
        open_to_all(&program);
        let mut copied = Command::new(&program);
        copied.args(served.get_args()).env("XDG_CACHE_HOME", folder.path().join("cache"));
        let limited = through(&["setpriv", "--reuid", "65534", "--clear-groups", "prlimit", "--nproc=40"], &copied);
        let (status, log) = run_to_end(limited);
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(log.contains("does not get its 65 threads") && log.contains("hint: `ulimit -u`"), "{log}");
        assert!(!log.contains("panicked"), "{log}");
    }
}

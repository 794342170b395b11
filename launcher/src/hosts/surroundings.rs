//! Which node of how many this process is, and where node 0 is: what was said, or what the program that started it left in the
//! environment.
//!
//! Reads variables through a function, so that tests have their own; opens no file and no socket. What was said settles a thing;
//! of programs the first counts that left anything, and two that disagree are refused.
//!
//! Reference: the manuals of LeaderWorkerSet (labels and environment variables), `srun` (output environment variables), `mpirun` of Open
//! MPI, Hydra's of MPICH, and `torchrun`.

use super::nodelist;
use crate::error::LaunchError;

/// Port of node 0 for nodes, where nothing says another.
pub(crate) const PORT: u16 = 20_000;
/// Of Slurm's jobs, which may share a host: from [`PORT`] on, by the number of the job.
const SLURM_PORTS: u32 = 10_000;

/// What was said, by flags or in `NANOINFER_*`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said {
    /// Which node this is.
    pub(crate) number: Option<usize>,
    /// How many there are.
    pub(crate) nodes: Option<usize>,
    /// Where node 0 is, HOST:PORT.
    pub(crate) connect: Option<String>,
}

/// Who this process is among the nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    /// Its number; none for any that is free.
    pub(crate) number: Option<usize>,
    /// How many there are; none where only node 0 knows.
    pub(crate) nodes: Option<usize>,
    /// Where node 0 is; none where it is this one and nothing says.
    pub(crate) node_zero: Option<String>,
    /// In words, with where that is from.
    pub(crate) told: String,
}

/// What one program left.
#[derive(Debug)]
struct Found {
    program: &'static str,
    number: usize,
    nodes: usize,
    node_zero: Option<String>,
    /// Processes of this host that it started, and how to have one.
    on_host: Option<(usize, &'static str)>,
    /// Number and count of processes, for where each is to be a node.
    process: (usize, usize),
}

type Variable<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Finds out.
///
/// # Errors
/// When two programs disagree, one started several processes on a host, or something is missing.
pub(crate) fn role(said: &Said, variable: Variable<'_>) -> Result<Role, LaunchError> {
    let mut programs = Vec::new();
    for find in [leader_worker_set, slurm, open_mpi, process_manager, torchrun] {
        programs.extend(find(variable)?);
    }
    let found = programs.first().map(|first| as_node(said, first)).transpose()?;
    for other in programs.iter().skip(1) {
        let (first, other) = (found.as_ref().expect("there is a first"), as_node(said, other)?);
        let is_settled = said.number.is_some() && said.nodes.is_some();
        if !is_settled && (first.number, first.nodes) != (other.number, other.nodes) {
            return Err(LaunchError::usage(
                format!(
                    "{} says node {} of {}, and {} says node {} of {}",
                    first.program, first.number, first.nodes, other.program, other.number, other.nodes
                ),
                "--node-rank and --nodes say which it is",
            ));
        }
    }
    let is_by_program = said.number.is_none() && found.is_some();
    let number = said.number.or(found.as_ref().map(|found| found.number));
    let nodes = said.nodes.or(found.as_ref().map(|found| found.nodes));
    // Who was told nothing but where node 0 is joins it.
    let number = number.or((said.connect.is_none()).then_some(0));
    let nodes = nodes.or((number == Some(0)).then_some(1));
    if let (Some(number), Some(nodes)) = (number, nodes)
        && number >= nodes
    {
        return Err(LaunchError::usage(
            format!("there is no node {number} among {nodes}"),
            "--node-rank counts from 0, --nodes is how many there are",
        ));
    }
    let node_zero = said.connect.clone().or(found.as_ref().and_then(|found| found.node_zero.clone()));
    if number != Some(0) && node_zero.is_none() {
        return Err(LaunchError::usage("nothing says where node 0 is", "--connect HOST:PORT, the same on every node"));
    }
    let by = match &found {
        Some(found) if is_by_program => found.program,
        _ => "what was said",
    };
    let which = match (number, nodes) {
        (Some(number), Some(nodes)) => format!("node {number} of {nodes}"),
        (Some(number), None) => format!("node {number}"),
        (None, _) => "a node of those that node 0 counts".into(),
    };
    let at = node_zero.as_ref().map_or(String::new(), |at| format!("; node 0 is {at}"));
    Ok(Role { number, nodes, node_zero, told: format!("this is {which}, by {by}{at}") })
}

/// One process is one node: where a program started several on this host, they must have been meant.
fn as_node(said: &Said, found: &Found) -> Result<Found, LaunchError> {
    let (process, processes) = found.process;
    let (number, nodes) = match found.on_host {
        None | Some((1, _)) => (found.number, found.nodes),
        Some(_) if said.nodes == Some(processes) => (process, processes),
        Some((count, instead)) => {
            return Err(LaunchError::usage(
                format!(
                    "{} started {count} processes on this host, and one process a host starts its ranks",
                    found.program
                ),
                format!(
                    "{instead}, with --nproc for all ranks; or --nodes {processes}, if each is to be a node of its own"
                ),
            ));
        }
    };
    Ok(Found { number, nodes, node_zero: found.node_zero.clone(), ..*found })
}

/// A number that a program left; none where it left none.
fn number(variable: Variable<'_>, name: &str) -> Result<Option<usize>, LaunchError> {
    let Some(value) = variable(name) else { return Ok(None) };
    match value.trim().parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(LaunchError::usage(
            format!("{name} is `{value}`, which is no number"),
            "whoever starts this process sets it; unset it to do without",
        )),
    }
}

/// `HOST:PORT` of a host without one; of an IPv6 address in brackets.
fn at(host: &str, port: u16) -> String {
    if host.contains(':') && !host.starts_with('[') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn leader_worker_set(variable: Variable<'_>) -> Result<Option<Found>, LaunchError> {
    let Some(leader) = variable("LWS_LEADER_ADDRESS") else { return Ok(None) };
    let size = number(variable, "LWS_GROUP_SIZE")?;
    let index = number(variable, "LWS_WORKER_INDEX")?;
    let (Some(nodes), Some(number)) = (size, index) else {
        return Err(LaunchError::usage(
            "LWS_LEADER_ADDRESS is set without LWS_GROUP_SIZE and LWS_WORKER_INDEX",
            "LeaderWorkerSet sets all of them from version 0.6 on",
        ));
    };
    let process = (number, nodes);
    let node_zero = Some(at(&leader, PORT));
    Ok(Some(Found { program: "LeaderWorkerSet (LWS_*)", number, nodes, node_zero, on_host: None, process }))
}

/// Of a step of `srun`; a batch script is no step.
fn slurm(variable: Variable<'_>) -> Result<Option<Found>, LaunchError> {
    let Some(list) = variable("SLURM_STEP_NODELIST") else { return Ok(None) };
    let count = number(variable, "SLURM_STEP_NUM_NODES")?;
    let (id, count) = (number(variable, "SLURM_NODEID")?, count.or(number(variable, "SLURM_NNODES")?));
    let (Some(id), Some(nodes)) = (id, count) else { return Ok(None) };
    let first = nodelist::first(&list).ok_or_else(|| {
        LaunchError::usage(format!("SLURM_STEP_NODELIST is `{list}`, which is no list of nodes"), "--connect HOST:PORT")
    })?;
    let job = number(variable, "SLURM_JOB_ID")?.unwrap_or(0) as u32;
    let node_zero = Some(at(&first, PORT + (job % SLURM_PORTS) as u16));
    let tasks = variable("SLURM_STEP_TASKS_PER_NODE").and_then(|list| nodelist::counts(&list));
    let on_host = tasks.as_ref().and_then(|tasks| tasks.get(id)).map(|&count| (count, "srun --ntasks-per-node=1"));
    let processes = tasks.map_or(nodes, |tasks| tasks.iter().sum());
    let process = (number(variable, "SLURM_PROCID")?.unwrap_or(id), processes);
    Ok(Some(Found { program: "Slurm (SLURM_*)", number: id, nodes, node_zero, on_host, process }))
}

/// Of programs that number processes: with one a host these are the nodes.
fn of_processes(
    variable: Variable<'_>,
    program: &'static str,
    [rank, size, on_host]: [&str; 3],
    instead: &'static str,
) -> Result<Option<Found>, LaunchError> {
    let (Some(rank), Some(size)) = (number(variable, rank)?, number(variable, size)?) else { return Ok(None) };
    let on_host = number(variable, on_host)?.map(|count| (count, instead));
    Ok(Some(Found { program, number: rank, nodes: size, node_zero: None, on_host, process: (rank, size) }))
}

fn open_mpi(variable: Variable<'_>) -> Result<Option<Found>, LaunchError> {
    let names = ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE"];
    of_processes(variable, "Open MPI (OMPI_*)", names, "mpirun --map-by ppr:1:node")
}

/// MPICH and Intel MPI; Slurm, too, where it speaks that protocol.
fn process_manager(variable: Variable<'_>) -> Result<Option<Found>, LaunchError> {
    // Slurm's has no count of its own for a host, and Slurm has said it.
    if variable("SLURM_STEP_NODELIST").is_some() && variable("MPI_LOCALNRANKS").is_none() {
        return Ok(None);
    }
    of_processes(variable, "MPICH (PMI_*)", ["PMI_RANK", "PMI_SIZE", "MPI_LOCALNRANKS"], "mpiexec -ppn 1")
}

fn torchrun(variable: Variable<'_>) -> Result<Option<Found>, LaunchError> {
    let Some(host) = variable("MASTER_ADDR") else { return Ok(None) };
    let Some(found) = of_processes(
        variable,
        "torchrun (RANK …)",
        ["RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"],
        "torchrun --nproc-per-node 1",
    )?
    else {
        return Ok(None);
    };
    let port = number(variable, "MASTER_PORT")?.and_then(|port| u16::try_from(port).ok()).unwrap_or(PORT);
    // At that port itself torchrun's agent listens.
    let has_agent = variable("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let port = if has_agent { port.checked_add(1).unwrap_or(PORT) } else { port };
    let (nodes, group) = (number(variable, "GROUP_WORLD_SIZE")?, number(variable, "GROUP_RANK")?);
    let (number, nodes) = group.zip(nodes).unwrap_or((found.number, found.nodes));
    Ok(Some(Found { number, nodes, node_zero: Some(at(&host, port)), ..found }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `variables` (as NAME=VALUE) say beside `said`.
    fn roles(said: &Said, variables: &str) -> Result<Role, String> {
        let pairs: Vec<(&str, &str)> = variables.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
        let of = |name: &str| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        role(said, &of).map_err(|error| error.to_string())
    }

    const LWS: &str = "LWS_LEADER_ADDRESS=infer-0.infer.default LWS_GROUP_SIZE=2 LWS_WORKER_INDEX=1";
    const SLURM: &str = "SLURM_STEP_NODELIST=n[1-2] SLURM_STEP_NUM_NODES=2 SLURM_NNODES=2 SLURM_NODEID=1 SLURM_PROCID=1 \
                         SLURM_STEP_TASKS_PER_NODE=1(x2) SLURM_JOB_ID=123456";
    const OMPI: &str = "OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_SIZE=2 OMPI_COMM_WORLD_LOCAL_SIZE=1";
    const MPICH: &str = "PMI_RANK=1 PMI_SIZE=2 MPI_LOCALNRANKS=1";
    const TORCH: &str = "MASTER_ADDR=fd00::1 MASTER_PORT=29500 RANK=1 WORLD_SIZE=2 LOCAL_WORLD_SIZE=1";

    fn connect() -> Said {
        Said { connect: Some("h:1".into()), ..Said::default() }
    }

    #[test]
    fn each_program_is_read_and_named() {
        for (said, variables, node_zero, program) in [
            (Said::default(), LWS, "infer-0.infer.default:20000", "LeaderWorkerSet"),
            (Said::default(), SLURM, "n1:23456", "Slurm"),
            (connect(), OMPI, "h:1", "Open MPI"),
            (connect(), MPICH, "h:1", "MPICH"),
            (Said::default(), TORCH, "[fd00::1]:29500", "torchrun"),
        ] {
            let Role { number, nodes, node_zero: at, told } = roles(&said, variables).unwrap();
            assert_eq!((number, nodes, at.as_deref()), (Some(1), Some(2), Some(node_zero)), "{variables}");
            assert!(told.contains(program) && told.contains("node 1 of 2"), "{told}");
        }
        let agent = format!("{TORCH} TORCHELASTIC_USE_AGENT_STORE=True GROUP_RANK=1 GROUP_WORLD_SIZE=2");
        assert_eq!(roles(&Said::default(), &agent).unwrap().node_zero.unwrap(), "[fd00::1]:29501");
    }

    #[test]
    fn nothing_around_is_one_host_and_an_address_alone_is_a_node_to_join() {
        assert_eq!(roles(&Said::default(), "").unwrap().told, "this is node 0 of 1, by what was said");
        let Role { number, nodes, node_zero: at, .. } = roles(&connect(), "").unwrap();
        assert_eq!((number, nodes, at.as_deref()), (None, None, Some("h:1")));
        // Of a batch script, which is no step of srun.
        assert_eq!(roles(&Said::default(), "SLURM_JOB_ID=7 SLURM_NNODES=2 SLURM_NODEID=0").unwrap().nodes, Some(1));
    }

    #[test]
    fn what_agrees_is_taken_in_order_and_what_does_not_is_refused() {
        let said = Said::default();
        for both in [format!("{SLURM} {OMPI}"), format!("{OMPI} {SLURM}"), format!("{SLURM} PMI_RANK=1 PMI_SIZE=2")] {
            assert!(roles(&said, &both).unwrap().told.contains("Slurm"), "{both}");
        }
        let other = OMPI.replace("RANK=1", "RANK=0");
        let error = roles(&said, &format!("{SLURM} {other}")).unwrap_err();
        let words = "Slurm (SLURM_*) says node 1 of 2, and Open MPI (OMPI_*) says node 0 of 2\n  hint: --node-rank";
        assert!(error.contains(words), "{error}");
        // What was said settles it.
        let said = Said { number: Some(0), nodes: Some(2), connect: None };
        assert_eq!(roles(&said, &format!("{SLURM} {other}")).unwrap().number, Some(0));
    }

    #[test]
    fn several_processes_of_a_host_are_refused_unless_each_was_meant_as_a_node() {
        let four = "OMPI_COMM_WORLD_RANK=3 OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_LOCAL_SIZE=4";
        let two_each = SLURM.replace("1(x2)", "2(x2)").replace("PROCID=1", "PROCID=3");
        for (variables, count, instead) in [
            (four, 4, "mpirun --map-by ppr:1:node"),
            ("PMI_RANK=3 PMI_SIZE=4 MPI_LOCALNRANKS=4", 4, "mpiexec -ppn 1"),
            (&two_each, 2, "srun --ntasks-per-node=1"),
            ("MASTER_ADDR=h RANK=3 WORLD_SIZE=4 LOCAL_WORLD_SIZE=4", 4, "torchrun --nproc-per-node 1"),
        ] {
            let error = roles(&connect(), variables).unwrap_err();
            assert!(error.contains(&format!("started {count} processes on this host")), "{error}");
            assert!(error.contains(instead) && error.contains("--nodes 4"), "{error}");
            let meant = Said { nodes: Some(4), ..connect() };
            assert_eq!(roles(&meant, variables).unwrap().number, Some(3), "{variables}");
        }
    }

    #[test]
    fn what_is_missing_or_no_number_is_named() {
        for (said, variables, words) in [
            (Said::default(), OMPI, "nothing says where node 0 is"),
            (Said { number: Some(2), nodes: Some(2), ..connect() }, "", "no node 2 among 2"),
            (Said::default(), "LWS_LEADER_ADDRESS=a", "LWS_GROUP_SIZE"),
            (Said::default(), "OMPI_COMM_WORLD_RANK=x OMPI_COMM_WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK is `x`"),
            (Said::default(), "SLURM_STEP_NODELIST=n[ SLURM_NODEID=0 SLURM_NNODES=2", "no list of nodes"),
        ] {
            let error = roles(&said, variables).unwrap_err();
            assert!(error.contains(words), "{variables}: {error}");
        }
    }
}

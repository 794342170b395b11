//! NCCL between two GPUs, each with a process of its own, as ranks are: its manual warns of one process with several GPUs that capture.
//!
//! ```text
//! this one ──starts──► rank 0 ──its id, a line of digits──► this one ──► rank 1
//!          ◄── one line of each: whether the sums are right, plainly and captured
//! ```

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    process::{Child, ChildStdout, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use nanoinfer_shared::protocol::DType;

use super::{Lab, Section, Trouble, values};
use crate::cuda::{
    error::While,
    nccl::{Communicator, Nccl},
};

/// Numbers that are added up.
const COUNT: usize = 1001;
/// Above what NCCL takes to join over slow links.
const DEADLINE: Duration = Duration::from_secs(120);
const NAP: Duration = Duration::from_millis(20);

/// Adds up over this GPU and another. Where there is no other NCCL has nothing to add, and only has to be there.
pub(super) fn check(gpu: u32, peer: u32, section: &mut Section<'_>) -> Result<(), Trouble> {
    let nccl = match Nccl::load() {
        Ok(nccl) => nccl,
        Err(error) => {
            section.tell("NCCL", error.to_string().lines().next().unwrap_or_default().into(), None);
            return Ok(());
        }
    };
    let what = format!("NCCL, version {}", nccl.version);
    if peer == gpu {
        let lab = Lab::new(gpu, DType::F32)?;
        Communicator::join(nccl, lab.gpu.context(), 0, 1, &nccl.new_id()?)?.end();
        section.tell(&format!("{what}, which one GPU does not need"), "loads and joins".into(), Some(true));
        return Ok(());
    }
    let mut ranks = Ranks(Vec::new());
    let mut first = ranks.start(gpu, 0)?;
    let mut id = String::new();
    first.read_line(&mut id)?;
    let mut second = ranks.start(peer, 1)?;
    if let Some(mut input) = ranks.0[1].stdin.take() {
        input.write_all(id.as_bytes())?;
    }
    ranks.wait()?;
    let (mut told, mut of_second) = (String::new(), String::new());
    first.read_to_string(&mut told)?;
    second.read_to_string(&mut of_second)?;
    told.push_str(&of_second);
    let right = |word: &str| told.matches(word).count() == 2;
    section.same(&format!("{what}, GPUs {gpu} and {peer}"), right("plainly right"));
    section.same(&format!("{what}, the same captured"), right("captured right"));
    Ok(())
}

/// The processes of both ranks, which end with this.
struct Ranks(Vec<Child>);

impl Ranks {
    /// Starts one, and returns what it says.
    fn start(&mut self, gpu: u32, rank: usize) -> Result<BufReader<ChildStdout>, Trouble> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["gpu-check", "--gpu", &gpu.to_string(), "--nccl-rank", &rank.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let output = child.stdout.take().expect("it is piped");
        self.0.push(child);
        Ok(BufReader::new(output))
    }

    fn wait(&mut self) -> Result<(), Trouble> {
        let begun = Instant::now();
        let mut is_done = |child: &mut Child| child.try_wait().map(|status| status.is_some());
        while !self.0.iter_mut().map(&mut is_done).collect::<io::Result<Vec<_>>>()?.into_iter().all(|done| done) {
            if begun.elapsed() > DEADLINE {
                return Err(Trouble::Pair { waited: DEADLINE });
            }
            thread::sleep(NAP);
        }
        Ok(())
    }
}

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// One of the two ranks: takes the id from `input`, unless it makes it, and writes what it found to `output`.
pub(super) fn run_rank(gpu: u32, rank: usize, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<(), Trouble> {
    let nccl = Nccl::load()?;
    let id = if rank == 0 {
        let id = nccl.new_id()?;
        let digits: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(output, "{digits}")?;
        output.flush()?;
        id
    } else {
        let mut digits = String::new();
        input.read_line(&mut digits)?;
        let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).unwrap_or_default(), 16).unwrap_or_default();
        digits.trim().as_bytes().chunks(2).map(byte).collect()
    };
    let lab = Lab::new(gpu, DType::F32)?;
    let numbers = values(COUNT, rank);
    let [plain, captured] = [lab.floats(&numbers)?, lab.floats(&numbers)?];
    let communicator = Communicator::join(nccl, lab.gpu.context(), rank, 2, &id)?;
    let queue = |at| communicator.all_reduce(at, numbers.len(), lab.gpu.stream().cu_stream());
    let wait = || lab.gpu.wait("add up", || communicator.check());
    let exact: Vec<f32> = values(COUNT, 0).iter().zip(values(COUNT, 1)).map(|(a, b)| a + b).collect();
    let mut tell = |how: &str, at| {
        let verdict = if lab.read(at, COUNT)? == exact { "right" } else { "wrong" };
        writeln!(output, "{how} {verdict}")?;
        Ok::<_, Trouble>(())
    };
    queue(plain)?;
    wait()?;
    tell("plainly", plain)?;
    let graph = lab.gpu.capture(|| queue(captured))?;
    graph.launch().doing("launch a graph")?;
    wait()?;
    tell("captured", captured)?;
    drop(graph);
    communicator.end();
    Ok(())
}

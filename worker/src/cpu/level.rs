//! Which instruction set the ranks compute with: chosen once, by whoever plans, of what the CPUs of all hosts have; ranks do as they are
//! told, also one that takes a lost one's place.

use std::fmt;

use nanoinfer_kernels::Isa;
use nanoinfer_shared::protocol::DType;
use serde::{Deserialize, Serialize};

use crate::WorkerError;

/// What a CPU computes with, as its host tells those that plan for it. By name, in ascending order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuLevels {
    available: Vec<String>,
    /// Which it is best at.
    best: String,
    /// Why that is not the last of them.
    why: String,
}

impl CpuLevels {
    /// Of the CPU that this runs on.
    pub fn here() -> Self {
        let refused = Isa::refused().map(|isa| format!(", as the system keeps {} from this process", isa.name()));
        let slower = Isa::passed_over().into_iter().map(|isa| format!("; this CPU is slower with {}", isa.name()));
        Self {
            available: Isa::available().iter().map(|isa| isa.name().into()).collect(),
            best: Isa::detect().name().into(),
            why: refused.into_iter().chain(slower).collect(),
        }
    }

    fn has(&self, isa: Isa) -> bool {
        self.available.iter().any(|name| name == isa.name())
    }

    /// The element type for who does not choose: bf16 where each of these CPUs multiplies it, else f32. Where it does so slowly, bf16
    /// is widened: half of the memory, at the speed of f32.
    pub fn default_dtype<'a>(mut all: impl Iterator<Item = &'a Self>) -> DType {
        if all.all(|cpu| cpu.has(Isa::Avx512Bf16)) { DType::Bf16 } else { DType::F32 }
    }
}

/// An instruction set, and why it is that.
#[derive(Clone, Debug)]
pub struct Level {
    isa: Isa,
    why: String,
}

impl Level {
    /// The one of that name, or the one that this CPU is best at.
    ///
    /// # Errors
    /// When this CPU has not what was asked for.
    pub fn choose(wanted: Option<&str>) -> Result<Self, WorkerError> {
        Self::for_all(wanted, &[("this CPU", &CpuLevels::here())])
    }

    /// The one of that name, or the best that is no better than what any of these CPUs, each with its name, is best at.
    ///
    /// # Errors
    /// Names the CPU that has not what was asked for.
    pub fn for_all(wanted: Option<&str>, cpus: &[(&str, &CpuLevels)]) -> Result<Self, WorkerError> {
        if let Some(name) = wanted {
            for (whose, cpu) in cpus {
                if !cpu.available.iter().any(|isa| isa == name) {
                    let available = cpu.available.join(", ");
                    return Err(WorkerError::Isa { whose: whose.to_string(), name: name.into(), available });
                }
            }
            let isa = Isa::from_name(name).expect("a CPU has those that there are");
            return Ok(Self { isa, why: ", as asked for".into() });
        }
        let best = |cpu: &CpuLevels| Isa::from_name(&cpu.best).expect("nodes are of one build");
        let least = cpus.iter().map(|(_, cpu)| best(cpu)).min().expect("there is a host");
        let of_all = |isa: &Isa| *isa <= least && cpus.iter().all(|(_, cpu)| cpu.has(*isa));
        let isa = Isa::ALL.into_iter().rev().find(of_all).expect("every CPU has the first of them");
        // Whoever could do better is told who cannot.
        let why = match cpus.iter().find(|(_, cpu)| best(cpu) > isa) {
            None => cpus.first().map_or(String::new(), |(_, cpu)| cpu.why.clone()),
            Some((able, cpu)) => format!(", which all hosts have; {able} has {}", cpu.best),
        };
        Ok(Self { isa, why })
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }

    /// Its name on the command line.
    pub fn name(&self) -> &'static str {
        self.isa.name()
    }
}

/// As a plan says it.
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "instruction set {}{}", self.isa.name(), self.why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_tells_which_and_why() {
        let best = Level::choose(None).unwrap();
        assert_eq!(best.name(), Isa::detect().name());
        assert!(best.to_string().starts_with(&format!("instruction set {}", best.name())), "{best}");
        let asked = Level::choose(Some("portable")).unwrap();
        assert_eq!(asked.to_string(), "instruction set portable, as asked for");
        let error = Level::choose(Some("sse9")).unwrap_err().to_string();
        assert!(error.contains("`sse9`") && error.contains("portable"), "{error}");
    }

    #[test]
    fn hosts_compute_with_what_all_of_them_have() {
        let cpu = |available: &[&str], best: &str| CpuLevels {
            available: available.iter().map(|name| name.to_string()).collect(),
            best: best.into(),
            why: String::new(),
        };
        let alder = cpu(&["portable", "avx2", "avx-vnni"], "avx-vnni");
        let zen4 = cpu(&["portable", "avx2", "avx512", "avx512-bf16"], "avx512-bf16");
        // One that is slower with its last is no reason for others to take what it is slow with.
        let slow = cpu(&["portable", "avx2", "avx512", "avx512-bf16"], "avx2");
        let level = |cpus: &[(&str, &CpuLevels)]| Level::for_all(None, cpus).unwrap();
        assert_eq!(level(&[("a", &zen4), ("b", &zen4)]).to_string(), "instruction set avx512-bf16");
        let both = level(&[("a", &alder), ("b", &zen4)]);
        assert_eq!(both.to_string(), "instruction set avx2, which all hosts have; a has avx-vnni");
        assert_eq!(level(&[("a", &zen4), ("b", &slow)]).name(), "avx2");
        let error = Level::for_all(Some("avx512"), &[("a", &zen4), ("b", &alder)]).unwrap_err().to_string();
        assert!(error.starts_with("b has no instruction set `avx512`"), "{error}");
        assert_eq!(CpuLevels::default_dtype([&zen4, &alder].into_iter()), DType::F32);
        assert_eq!(CpuLevels::default_dtype([&zen4, &slow].into_iter()), DType::Bf16);
    }
}

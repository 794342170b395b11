//! Which instruction set the ranks compute with: chosen once, by whoever plans; ranks do as they are told, also one that takes
//! a lost one's place.

use std::fmt;

use nanoinfer_kernels::Isa;

use crate::WorkerError;

/// An instruction set of this CPU, and why it is that.
#[derive(Clone, Copy, Debug)]
pub struct Level {
    isa: Isa,
    asked_for: bool,
}

impl Level {
    /// The one of that name, or the one that this CPU is best at.
    ///
    /// # Errors
    /// When this CPU has not what was asked for.
    pub fn choose(wanted: Option<&str>) -> Result<Self, WorkerError> {
        match wanted {
            Some(name) => Ok(Self { isa: named(name)?, asked_for: true }),
            None => Ok(Self { isa: Isa::detect(), asked_for: false }),
        }
    }

    pub(super) fn isa(self) -> Isa {
        self.isa
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        self.isa.name()
    }
}

/// As a plan says it.
impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { isa, asked_for } = *self;
        write!(f, "instruction set {}", isa.name())?;
        if asked_for {
            return write!(f, ", as asked for");
        }
        if let Some(refused) = Isa::refused() {
            write!(f, ", as the system keeps {} from this process", refused.name())?;
        }
        Isa::passed_over().into_iter().try_for_each(|slower| write!(f, "; this CPU is slower with {}", slower.name()))
    }
}

/// The instruction set of that name, which this CPU has.
fn named(name: &str) -> Result<Isa, WorkerError> {
    let available = Isa::available();
    Isa::from_name(name).filter(|isa| available.contains(isa)).ok_or_else(|| WorkerError::Isa {
        name: name.into(),
        available: available.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
    })
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
}

//! How many descriptors this process may have open, and how many connections that leaves room for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Kept for all that is no connection: ranks, files, pipes, and connections on their way in or out.
const KEPT: usize = 128;
/// Most connections, however many descriptors there may be: each takes some 20 KB.
const MOST: usize = 8192;

/// Takes as many descriptors as the system gives without asking: most shells and systemd leave a limit of 1,024 that whoever
/// needs more may raise, as programs that call `select` cannot use more. Returns how many connections that leaves room for.
pub(crate) fn raise() -> usize {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let current = match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            current
        }
    };
    connections(current)
}

/// Of a limit of descriptors; none for no limit.
fn connections(descriptors: Option<u64>) -> usize {
    let descriptors = descriptors.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX);
    descriptors.saturating_sub(KEPT).max(descriptors / 2).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_all_else() {
        let most = [Some(16), Some(256), Some(1024), Some(524_288), Some(u64::MAX), None].map(connections);
        assert_eq!(most, [8, 128, 896, MOST, MOST, MOST]);
    }

    #[test]
    fn the_limit_is_raised_as_far_as_it_goes() {
        let most = raise();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
        assert_eq!(most, connections(limit.current));
    }
}

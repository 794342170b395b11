//! Handshakes under way at an open port.
//!
//! Every knock has a thread, so that a silent one does not hold up the others. There are so many places and no more: the
//! oldest knock yields to a new one, as an honest rank is through in milliseconds. Does not know who may come in.
//! Invariant: a guest that has come in is never closed from here, and once this is dropped none of its threads is left.

use std::{
    collections::VecDeque,
    io,
    net::{Shutdown, TcpListener, TcpStream},
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
};

/// Listens at an address of this machine: on the first port of `ports` that is free, or on any where none are named.
///
/// # Errors
/// When `host` is no address of this machine, or all ports are taken.
pub fn listen(host: &str, ports: Option<&RangeInclusive<u16>>) -> io::Result<TcpListener> {
    let mut refused = io::Error::from(io::ErrorKind::InvalidInput);
    for port in ports.cloned().unwrap_or(0..=0) {
        match TcpListener::bind((host, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => refused = error,
            bound => return bound,
        }
    }
    Err(refused)
}

/// Knocks that are being answered, and the guests that came of them.
#[derive(Debug)]
pub struct Knocks<Guest> {
    places: usize,
    under_way: VecDeque<Knock>,
    arrived: mpsc::Sender<Guest>,
    arrivals: mpsc::Receiver<Guest>,
}

#[derive(Debug)]
struct Knock {
    socket: TcpStream,
    /// Set once, by whoever is first: the thread when its guest comes in, or the door when it closes the socket.
    decided: Arc<AtomicBool>,
    thread: thread::JoinHandle<()>,
}

impl<Guest: Send + 'static> Knocks<Guest> {
    /// A door with so many places before it.
    pub fn new(places: usize) -> Self {
        let (arrived, arrivals) = mpsc::channel();
        Self { places, under_way: VecDeque::new(), arrived, arrivals }
    }

    /// Answers a knock on a thread of its own: `admit` says who comes in.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor for it.
    pub fn answer(
        &mut self,
        socket: TcpStream,
        admit: impl FnOnce(TcpStream) -> Option<Guest> + Send + 'static,
    ) -> io::Result<()> {
        self.under_way.retain(|knock| !knock.thread.is_finished());
        while self.under_way.len() >= self.places {
            self.under_way.pop_front().expect("a door has places").turn_away();
        }
        let (handle, decided) = (socket.try_clone()?, Arc::new(AtomicBool::new(false)));
        let (arrived, first) = (self.arrived.clone(), decided.clone());
        let thread = thread::Builder::new().name("knock".into()).spawn(move || {
            if let Some(guest) = admit(socket)
                && !first.swap(true, SeqCst)
            {
                // A closed channel: the door is shut.
                let _ = arrived.send(guest);
            }
        })?;
        self.under_way.push_back(Knock { socket: handle, decided, thread });
        Ok(())
    }

    /// Those who came in since the last call.
    pub fn arrivals(&self) -> impl Iterator<Item = Guest> + '_ {
        self.arrivals.try_iter()
    }
}

impl Knock {
    fn turn_away(self) {
        if !self.decided.swap(true, SeqCst) {
            // An error means that the other side was faster.
            let _ = self.socket.shutdown(Shutdown::Both);
        }
        // With a socket that is closed, or a guest that is in, it has nothing to wait for. A panic there has been printed.
        let _ = self.thread.join();
    }
}

impl<Guest> Drop for Knocks<Guest> {
    fn drop(&mut self) {
        self.under_way.drain(..).for_each(Knock::turn_away);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    use super::*;

    /// Comes in with the byte it says.
    fn first_byte(mut socket: TcpStream) -> Option<(u8, TcpStream)> {
        let mut byte = [0];
        socket.read_exact(&mut byte).ok().map(|()| (byte[0], socket))
    }

    fn wait<T: Send + 'static>(knocks: &Knocks<T>) -> T {
        knocks.arrivals.recv().unwrap()
    }

    #[test]
    fn ports_of_a_range_are_taken_one_after_the_other_until_there_is_none() {
        let first = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().min(u16::MAX - 3);
        let range = first..=first + 2;
        let taken: Vec<_> = std::iter::from_fn(|| listen("127.0.0.1", Some(&range)).ok()).collect();
        let ports: Vec<u16> = taken.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        assert!(!ports.is_empty() && ports.is_sorted() && ports.iter().all(|port| range.contains(port)), "{ports:?}");
        assert_eq!(listen("127.0.0.1", Some(&range)).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert!(listen("127.0.0.1", None).is_ok());
    }

    #[test]
    fn silent_knocks_yield_to_those_behind_them_and_guests_stay() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut knocks = Knocks::new(3);
        let knock = || {
            let there = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            (there, listener.accept().unwrap().0)
        };
        let mut silent = Vec::new();
        for _ in 0..10 {
            let (there, here) = knock();
            knocks.answer(here, first_byte).unwrap();
            silent.push(there);
        }
        let (mut honest, here) = knock();
        knocks.answer(here, first_byte).unwrap();
        honest.write_all(&[7]).unwrap();
        let (said, mut guest) = wait(&knocks);
        assert_eq!(said, 7);
        // The oldest see the end; those that still have a place do not.
        for there in &mut silent[..8] {
            assert_eq!(there.read(&mut [0]).unwrap(), 0);
        }
        drop(knocks);
        for there in &mut silent[8..] {
            assert_eq!(there.read(&mut [0]).unwrap(), 0);
        }
        guest.write_all(&[8]).unwrap();
        let mut byte = [0];
        honest.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [8], "a guest's link outlives the door");
    }
}

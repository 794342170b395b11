//! Whose turn it is: the sequences that wait, by who asked for them, and how much was computed for each.
//!
//! ```text
//! party (an address; on loopback a request)    served  ─┬─ request  served ── sequences, in order
//!                                                       └─ request  served ── sequences, in order
//! next: the party with the fewest tokens, of its requests the one with the fewest, of that the first sequence
//! ```
//! Who comes new starts at the count of the least served of those that are there, or were a few steps ago: nobody saves up
//! by being silent, nobody is held for what others got before, and whoever is far ahead stays so while others come and go. A
//! tie goes to who came first.
//!
//! Knows sequences, and which of them are gone; does not know blocks, places or steps.
//! Invariant: a party, and a request, is here exactly as long as one of its sequences waits or runs.
//! Reference: the virtual token counter of Sheng et al., Fairness in Serving Large Language Models (2024).

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
};

use crate::engine::{
    owner::{Owner, Party, RequestId},
    sequence::Sequence,
};

/// Steps for which a party that is alone is compared with those who have left: chats come and go.
const LATELY_STEPS: u32 = 8;

/// The place of an owner in the order of turns; the least is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Turn {
    party_served: u64,
    party_since: RequestId,
    request_served: u64,
    request: RequestId,
}

/// Those who wait, in the order of their turns, while some are let in: what they let in counts at once.
#[derive(Debug)]
pub(crate) struct Line {
    waiting: BinaryHeap<Reverse<Waiting>>,
    /// Tokens that sequences have to compute which were let in from here.
    let_in: HashMap<Party, u64>,
}

/// Somebody in line. Turns differ, so nothing else decides their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    turn: Turn,
    party: Party,
    /// What its turn counts of what was let in.
    let_in: u64,
}

/// All sequences that wait, and the accounts of those who have any here or in a step.
#[derive(Debug, Default)]
pub(crate) struct FairQueue {
    parties: BTreeMap<Party, PartyAccount>,
    waiting: usize,
    /// What the least served of several had, and for how many steps that still counts.
    lately: Option<(u64, u32)>,
}

#[derive(Debug, Default)]
struct PartyAccount {
    served: Served,
    requests: BTreeMap<RequestId, RequestAccount>,
}

#[derive(Debug, Default)]
struct RequestAccount {
    served: Served,
    /// Its sequences that wait or run.
    sequences: usize,
    /// Those that wait, in order: who has run before comes first.
    waiting: VecDeque<Sequence>,
}

/// Tokens computed for somebody.
#[derive(Clone, Copy, Debug, Default)]
struct Served {
    /// In steps that were planned.
    tokens: u64,
    /// In the step that is being chosen.
    reserved: u64,
}

impl Served {
    fn total(self) -> u64 {
        self.tokens + self.reserved
    }
}

impl PartyAccount {
    fn turn(&self, id: RequestId, request: &RequestAccount) -> Turn {
        Turn {
            party_served: self.served.total(),
            party_since: *self.requests.first_key_value().expect("that request at least").0,
            request_served: request.served.total(),
            request: id,
        }
    }
}

impl Line {
    /// Who is next.
    pub(crate) fn next(&mut self) -> Option<Waiting> {
        while let Some(Reverse(mut next)) = self.waiting.pop() {
            // Others of its party may have been let in since it was put here.
            let let_in = self.let_in.get(&next.party).copied().unwrap_or(0);
            if next.let_in == let_in {
                return Some(next);
            }
            next.turn.party_served += let_in - next.let_in;
            next.let_in = let_in;
            self.waiting.push(Reverse(next));
        }
        None
    }

    /// Puts somebody in line again, of whom a sequence was let in that has `tokens` to compute.
    pub(crate) fn again(&mut self, mut who: Waiting, tokens: usize) {
        let tokens = tokens as u64;
        *self.let_in.entry(who.party).or_default() += tokens;
        who.let_in += tokens;
        who.turn.party_served += tokens;
        who.turn.request_served += tokens;
        self.waiting.push(Reverse(who));
    }
}

impl Waiting {
    pub(crate) fn owner(&self) -> Owner {
        Owner { party: self.party, request: self.turn.request }
    }
}

impl FairQueue {
    /// Adds a sequence that has not run yet, behind the others of its request.
    pub(crate) fn add(&mut self, sequence: Sequence) {
        let Owner { party, request } = sequence.owner;
        let least = self.least();
        let started_at = |least: Option<u64>| Served { tokens: least.unwrap_or(0), reserved: 0 };
        let new_party = || PartyAccount { served: started_at(least), ..PartyAccount::default() };
        let party = self.parties.entry(party).or_insert_with(new_party);
        let least = party.requests.values().map(|account| account.served.tokens).min();
        let new_request = || RequestAccount { served: started_at(least), ..RequestAccount::default() };
        let request = party.requests.entry(request).or_insert_with(new_request);
        request.sequences += 1;
        request.waiting.push_back(sequence);
        self.waiting += 1;
    }

    /// Takes back a sequence that was taken from here, to the place where it stood.
    pub(crate) fn put_back(&mut self, sequence: Sequence) {
        let waiting = &mut self.accounts_mut(sequence.owner).1.waiting;
        let at = waiting.partition_point(|other| other.id < sequence.id);
        waiting.insert(at, sequence);
        self.waiting += 1;
    }

    /// Those who wait, in the order of their turns.
    pub(crate) fn line(&self) -> Line {
        let waiting = self.parties.iter().flat_map(|(&party, account)| {
            let waiting = account.requests.iter().filter(|(_, request)| !request.waiting.is_empty());
            waiting.map(move |(&id, request)| Reverse(Waiting { turn: account.turn(id, request), party, let_in: 0 }))
        });
        Line { waiting: waiting.collect(), let_in: HashMap::new() }
    }

    /// Whether any sequence of somebody waits.
    pub(crate) fn waits(&self, owner: Owner) -> bool {
        let party = self.parties.get(&owner.party);
        party.and_then(|party| party.requests.get(&owner.request)).is_some_and(|request| !request.waiting.is_empty())
    }

    /// Takes the first sequence of somebody who waits. Its accounts stay, until it is put back or has [`Self::left`].
    pub(crate) fn take(&mut self, owner: Owner) -> Sequence {
        self.waiting -= 1;
        self.accounts_mut(owner).1.waiting.pop_front().expect("somebody who waits")
    }

    /// When somebody's turn is, compared with others'.
    pub(crate) fn turn(&self, owner: Owner) -> Turn {
        let party = self.party(owner.party);
        let request = party.requests.get(&owner.request).expect("a request with a sequence has an account");
        party.turn(owner.request, request)
    }

    /// What the least served party has, of those that are here or were lately.
    pub(crate) fn least(&self) -> Option<u64> {
        self.least_here().into_iter().chain(self.lately.map(|(least, _)| least)).min()
    }

    fn least_here(&self) -> Option<u64> {
        self.parties.values().map(|account| account.served.tokens).min()
    }

    /// Tokens that were computed for a party that is here, in steps that were planned.
    pub(crate) fn served(&self, party: Party) -> u64 {
        self.party(party).served.tokens
    }

    /// Whether for `other` as much was computed as for `owner`: for its party, or among one party's requests for its request.
    pub(crate) fn got_no_less(&self, other: Owner, owner: Owner) -> bool {
        let (others, own) = (self.turn(other), self.turn(owner));
        if other.party == owner.party {
            others.request_served >= own.request_served
        } else {
            others.party_served >= own.party_served
        }
    }

    /// Notes that a step that is being chosen computes `tokens` for somebody.
    pub(crate) fn reserve(&mut self, owner: Owner, tokens: usize) {
        let (party, request) = self.accounts_mut(owner);
        party.reserved += tokens as u64;
        request.served.reserved += tokens as u64;
    }

    /// The step is planned.
    pub(crate) fn settle(&mut self) {
        self.each_account(|served| *served = Served { tokens: served.total(), reserved: 0 });
        self.lately = match self.lately {
            _ if self.parties.len() > 1 => self.least_here().map(|least| (least, LATELY_STEPS)),
            Some((least, steps @ 1..)) => Some((least, steps - 1)),
            _ => None,
        };
    }

    /// The step is chosen anew.
    pub(crate) fn forget_reserved(&mut self) {
        self.each_account(|served| served.reserved = 0);
    }

    /// Notes that a sequence which was taken from here is over.
    pub(crate) fn left(&mut self, owner: Owner) {
        let (_, request) = self.accounts_mut(owner);
        request.sequences -= 1;
        if request.sequences > 0 {
            return;
        }
        let party = self.parties.get_mut(&owner.party).expect("it was just looked up");
        party.requests.remove(&owner.request);
        if party.requests.is_empty() {
            self.parties.remove(&owner.party);
        }
    }

    /// Takes out all that wait and for which `gone` holds.
    pub(crate) fn remove_where(&mut self, gone: impl Fn(&Sequence) -> bool) -> Vec<Sequence> {
        let mut removed = Vec::new();
        for request in self.parties.values_mut().flat_map(|party| party.requests.values_mut()) {
            if request.waiting.iter().any(&gone) {
                let (left, kept) = request.waiting.drain(..).partition(&gone);
                request.waiting = kept;
                removed.extend::<VecDeque<Sequence>>(left);
            }
        }
        self.waiting -= removed.len();
        removed.iter().for_each(|sequence| self.left(sequence.owner));
        removed
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.waiting
    }

    /// All that wait.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = &Sequence> {
        self.parties.values().flat_map(|party| party.requests.values()).flat_map(|request| &request.waiting)
    }

    /// Those that have run before.
    pub(crate) fn begun_mut(&mut self) -> impl Iterator<Item = &mut Sequence> {
        let requests = self.parties.values_mut().flat_map(|party| party.requests.values_mut());
        requests.flat_map(|request| request.waiting.iter_mut().take_while(|sequence| sequence.place.is_none()))
    }

    /// Whether accounts and sequences, those that run among them, are as they must be.
    ///
    /// # Errors
    /// Says in plain words what is not.
    pub(crate) fn check<'a>(&'a self, running: impl Iterator<Item = &'a Sequence>) -> Result<(), String> {
        let waiting = self.sequences().count();
        if waiting != self.waiting {
            return Err(format!("{waiting} sequences wait, and {} were counted", self.waiting));
        }
        let mut counted: BTreeMap<RequestId, usize> = BTreeMap::new();
        let all = self.sequences().chain(running);
        all.for_each(|sequence| *counted.entry(sequence.owner.request).or_default() += 1);
        for (&request, account) in self.parties.values().flat_map(|party| &party.requests) {
            if counted.remove(&request) != Some(account.sequences) {
                return Err(format!(
                    "{request:?} has another number of sequences than the {} counted",
                    account.sequences
                ));
            }
            if !account.waiting.iter().map(|sequence| sequence.id).is_sorted() {
                return Err(format!("sequences of {request:?} wait out of order"));
            }
        }
        match counted.first_key_value() {
            Some((request, _)) => Err(format!("{request:?} has sequences and no account")),
            None => Ok(()),
        }
    }

    fn party(&self, party: Party) -> &PartyAccount {
        self.parties.get(&party).expect("who has a sequence has an account")
    }

    /// What was computed for an owner's party, and the account of its request.
    fn accounts_mut(&mut self, owner: Owner) -> (&mut Served, &mut RequestAccount) {
        let party = self.parties.get_mut(&owner.party).expect("who has a sequence has an account");
        let request = party.requests.get_mut(&owner.request).expect("a request with a sequence has an account");
        (&mut party.served, request)
    }

    fn each_account(&mut self, change: impl Fn(&mut Served)) {
        for party in self.parties.values_mut() {
            change(&mut party.served);
            party.requests.values_mut().for_each(|request| change(&mut request.served));
        }
    }
}

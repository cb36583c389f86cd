//! Ranks that are processes of an MPI job: one process, one rank.
//!
//! Nothing here blocks inside the library: messages are begun and then asked for, with a deadline. Where it passes, where another rank
//! says that it gives up, or where the launcher asks this process to end, the ranks **call the roll**: each tells all others that it is
//! there and why it stopped, and waits a moment for their word. Those that say nothing are killed, hung or cut off, and every
//! survivor names them. A rank that computes meanwhile answers when it next waits.
//!
//! Whoever has said what it knows tells the others, and ends the job when all who answered have said so.
//!
//! All calls are made by the thread that started the library (`MPI_THREAD_FUNNELED`); [`Mpi`] cannot leave it.

#[cfg(feature = "cuda")]
mod device;
mod message;

use super::{At, Transport, TransportError};
#[cfg(feature = "cuda")]
pub use device::MpiDevice;
use message::{Message, done};
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::Communicator as _;
use mpi::traits::AsRaw as _;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::fmt;
use std::mem::ManuallyDrop;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const ROLL: c_int = 1;
const MOVE: c_int = 2;
/// What a rank says before it ends the job.
const LAST: c_int = 3;
/// Device memory: what a step waits for, and moves.
#[cfg(feature = "cuda")]
const DEVICE: c_int = 4;
#[cfg(feature = "cuda")]
const DEVICE_MOVE: c_int = 5;
/// Exchanges take turns with this tag and the ones behind it, those that may end in another order with the ones behind these.
const EXCHANGE: c_int = 16;
const TURNS: c_int = 1 << 12;
const PARTS: c_int = EXCHANGE + TURNS;

/// The shortest and the longest wait for answers when the roll is called.
const GRACE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// The same when the launcher has asked this process to end: it kills soon after.
const HURRY: Duration = Duration::from_millis(300);

/// One process of an MPI job. Clones are the same.
#[derive(Clone)]
pub struct Mpi(Rc<Process>);

struct Process {
    /// Ended by [`Mpi::end`] alone: ending it waits for all others.
    universe: RefCell<ManuallyDrop<Option<Universe>>>,
    comm: ffi::MPI_Comm,
    rank: usize,
    ranks: usize,
    host: String,
    timeout: Duration,
    /// Whether the launcher wants this process to end.
    ending: Arc<AtomicBool>,
    /// Whether the others have been told, or told us.
    told: Cell<bool>,
    /// Who answered when the roll was called.
    there: RefCell<Vec<usize>>,
    turn: Cell<c_int>,
    moves: RefCell<UnderWay>,
    /// By number.
    exchanges: RefCell<HashMap<u64, UnderWay>>,
}

/// Messages that were begun, and what is to come, in the order in which it was begun.
#[derive(Default)]
struct UnderWay {
    sent: Vec<Message>,
    wanted: Vec<Wanted>,
    /// Whether several may come from one rank, of which the first begun is the first that comes.
    in_order: bool,
}

impl UnderWay {
    /// Moves everything on as far as it goes; whether that is to the end.
    fn is_through(&mut self, comm: ffi::MPI_Comm) -> Result<bool, TransportError> {
        let mut all = true;
        // All of them: a large message begins to move when it is asked for.
        for wanted in &mut self.wanted {
            all &= wanted.is_here(comm)?;
            if self.in_order && !all {
                break;
            }
        }
        for sent in &mut self.sent {
            all &= sent.is_through()?;
        }
        Ok(all)
    }
}

/// A message that is to come.
struct Wanted {
    from: usize,
    tag: c_int,
    message: Option<Message>,
}

impl Wanted {
    fn is_here(&mut self, comm: ffi::MPI_Comm) -> Result<bool, TransportError> {
        if self.message.is_none() {
            self.message = Message::arrived(comm, Some(self.from), self.tag)?.map(|(_, message)| message);
        }
        self.message.as_mut().map_or(Ok(false), Message::is_through)
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mpi")
            .field("rank", &self.0.rank)
            .field("ranks", &self.0.ranks)
            .finish_non_exhaustive()
    }
}

impl Mpi {
    /// Joins the job that this process was started in, as `mpirun` and `srun` do; alone, it is a job of one. A rank that is silent
    /// for `timeout` is taken for lost.
    ///
    /// # Errors
    /// When this process has joined already, or the library cannot be used so.
    pub fn join(timeout: Duration) -> Result<Self, TransportError> {
        let library = |call, reason: &str| TransportError::Library { call, reason: reason.into() };
        let (universe, threading) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| library("MPI_Init_thread", "it was called before"))?;
        if threading < Threading::Funneled {
            return Err(library("MPI_Init_thread", "this MPI library wants a process of one thread"));
        }
        let world = universe.world();
        let (comm, rank, ranks) = (world.as_raw(), world.rank() as usize, world.size() as usize);
        // SAFETY: the communicator is the library's own, for as long as it runs.
        #[allow(unsafe_code, reason = "a call into the MPI library")]
        done("MPI_Comm_set_errhandler", unsafe {
            ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN)
        })?;
        let host = mpi::environment::processor_name().unwrap_or_default();
        let ending = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&ending))
            .map_err(|error| library("sigaction", &error.to_string()))?;
        Ok(Self(Rc::new(Process {
            universe: RefCell::new(ManuallyDrop::new(Some(universe))),
            comm,
            rank,
            ranks,
            host,
            timeout,
            ending,
            told: Cell::new(false),
            there: RefCell::default(),
            turn: Cell::new(0),
            moves: RefCell::default(),
            exchanges: RefCell::default(),
        })))
    }

    /// The name of the host that this process runs on.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// Leaves the job; waits for the others to do so too.
    ///
    /// # Errors
    /// When one of them is gone.
    pub fn end(&self, at: At) -> Result<(), TransportError> {
        self.exchange(at, vec![Vec::new(); self.ranks()])?;
        drop(self.0.universe.borrow_mut().take());
        Ok(())
    }

    /// Gives up, when this rank has said why: tells all others, where the roll has not been called, and ends the job, however many of
    /// its processes hang. Returns where the launcher is ending the job already; this process should end itself then.
    pub fn give_up(&self, why: &str) {
        let process = &self.0;
        if !process.told.replace(true) {
            process.tell(ROLL, why);
            // Let the others say what they know before the launcher ends them.
            process.answers(Instant::now() + HURRY);
        }
        process.tell(LAST, "");
        let ending = || process.ending.load(Ordering::Relaxed);
        // The end of the job is the end of whoever has not said yet what it knows. It called the roll after this rank, at most
        // so much later as that waited for answers, and then waits as long.
        let there = process.there.borrow();
        let all = |said: &Answers| ending() || there.iter().all(|rank| said.contains_key(rank));
        process.hear(LAST, Instant::now() + process.grace() + HURRY, all);
        // And time for the launcher to read it: it does not read on when all have ended.
        std::thread::sleep(HURRY);
        if !ending() {
            // SAFETY: the library runs until `end`.
            #[allow(unsafe_code, reason = "a call into the MPI library")]
            unsafe {
                ffi::MPI_Abort(process.comm, 1);
            }
        }
    }
}

/// What ranks said.
type Answers = BTreeMap<usize, String>;

impl Process {
    fn others(&self) -> impl Iterator<Item = usize> {
        let me = self.rank;
        (0..self.ranks).filter(move |&rank| rank != me)
    }

    /// How long others have for an answer.
    fn grace(&self) -> Duration {
        (self.timeout / 4).clamp(GRACE[0], GRACE[1])
    }

    /// Tells all others that this rank is there, and why it gives up where it does so of its own. Nobody waits for it to arrive.
    fn tell(&self, tag: c_int, why: &str) {
        for to in self.others() {
            if let Ok(mut message) = Message::send(self.comm, to, tag, why.as_bytes().to_vec()) {
                let _ = message.is_through();
            }
        }
    }

    /// What other ranks say until all have spoken or the time is up.
    fn answers(&self, until: Instant) -> Answers {
        let answers = self.hear(ROLL, until, |answers| answers.len() + 1 == self.ranks);
        self.there.replace(answers.keys().copied().collect());
        answers
    }

    /// What other ranks say until that is `enough` or the time is up.
    fn hear(&self, tag: c_int, until: Instant, enough: impl Fn(&Answers) -> bool) -> Answers {
        let mut answers = BTreeMap::new();
        let mut coming: Vec<(usize, Message)> = Vec::new();
        while !enough(&answers) && Instant::now() < until {
            while let Ok(Some(message)) = Message::arrived(self.comm, None, tag) {
                coming.push(message);
            }
            let mut rest = Vec::new();
            for (from, mut message) in coming {
                if matches!(message.is_through(), Ok(true)) {
                    answers.insert(from, String::from_utf8_lossy(&message.into_bytes()).into_owned());
                } else {
                    rest.push((from, message));
                }
            }
            coming = rest;
            std::thread::sleep(Duration::from_micros(200));
        }
        answers
    }

    /// Calls the roll: who is lost? Nothing has come from `missing`.
    fn roll(&self, at: At, waited: Duration, missing: impl IntoIterator<Item = usize>) -> TransportError {
        if self.told.replace(true) {
            return TransportError::Ended { at };
        }
        self.tell(ROLL, "");
        let ending = self.ending.load(Ordering::Relaxed);
        let answers = self.answers(Instant::now() + if ending { HURRY } else { self.grace() });
        let silent: Vec<usize> = self.others().filter(|rank| !answers.contains_key(rank)).collect();
        let failed: Vec<_> = answers.into_iter().filter(|(_, why)| !why.is_empty()).collect();
        match () {
            () if !silent.is_empty() || !failed.is_empty() => {
                TransportError::Lost { at, silent, failed, waited }
            }
            () if self.ending.load(Ordering::Relaxed) => TransportError::Ended { at },
            () => TransportError::Late { at, missing: missing.into_iter().collect(), waited },
        }
    }

    /// Asks until everything is there; says how long it waited where that is not to be.
    fn wait(
        &self,
        mut all_here: impl FnMut() -> Result<bool, TransportError>,
    ) -> Result<Option<Duration>, TransportError> {
        let begun = Instant::now();
        let mut turns = 0u32;
        if self.told.get() {
            return Ok(Some(Duration::ZERO));
        }
        loop {
            // At first, too: a process that is to end, and never has to wait, would not end.
            if turns.is_multiple_of(16) {
                let called = self.called()?;
                if called || self.ending.load(Ordering::Relaxed) || begun.elapsed() > self.timeout {
                    return Ok(Some(begun.elapsed()));
                }
            }
            if all_here()? {
                return Ok(None);
            }
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(16) {
                // On a machine with fewer cores than ranks somebody else has to work.
                std::thread::yield_now();
            }
        }
    }

    /// Whether another rank has called the roll; its word is left for [`Process::answers`].
    fn called(&self) -> Result<bool, TransportError> {
        let mut flag: c_int = 0;
        // SAFETY: the flag is there, and nobody asks for the status.
        #[allow(unsafe_code, reason = "a call into the MPI library")]
        let code = unsafe {
            ffi::MPI_Iprobe(ffi::RSMPI_ANY_SOURCE, ROLL, self.comm, &raw mut flag, ffi::RSMPI_STATUS_IGNORE)
        };
        done("MPI_Iprobe", code)?;
        Ok(flag != 0)
    }

    /// Waits for messages to be sent and received; what was received.
    fn through(&self, at: At, mut under_way: UnderWay) -> Result<Vec<Vec<u8>>, TransportError> {
        let waited = self.wait(|| under_way.is_through(self.comm))?;
        let wanted = under_way.wanted;
        if let Some(waited) = waited {
            let missing = wanted.iter().filter(|wanted| waited > self.timeout && wanted.message.is_none());
            return Err(self.roll(at, waited, missing.map(|wanted| wanted.from)));
        }
        Ok(wanted.into_iter().filter_map(|wanted| wanted.message).map(Message::into_bytes).collect())
    }
}

impl Transport for Mpi {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn rank(&self) -> usize {
        self.0.rank
    }

    fn ranks(&self) -> usize {
        self.0.ranks
    }

    fn exchange(&self, at: At, mut parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, TransportError> {
        let process = &self.0;
        let (me, ranks) = (process.rank, process.ranks);
        let turn = process.turn.get();
        process.turn.set((turn + 1) % TURNS);
        let tag = EXCHANGE + turn;
        let own = std::mem::take(&mut parcels[me]);
        // Everybody begins with the rank behind it, so that not all send to the same one at once.
        let order = (1..ranks).map(|step| (me + step) % ranks);
        let send = |to: usize| Message::send(process.comm, to, tag, std::mem::take(&mut parcels[to]));
        let sent = order.map(send).collect::<Result<Vec<_>, _>>()?;
        let wanted = process.others().map(|from| Wanted { from, tag, message: None }).collect();
        let mut came = process.through(at, UnderWay { sent, wanted, in_order: false })?;
        came.insert(me, own);
        Ok(came)
    }

    fn begin(&self, number: u64, to: Vec<(usize, Vec<u8>)>, from: Vec<usize>) -> Result<(), TransportError> {
        let tag = PARTS + (number % TURNS as u64) as c_int;
        let send = |(to, bytes)| Message::send(self.0.comm, to, tag, bytes);
        let sent = to.into_iter().map(send).collect::<Result<_, _>>()?;
        let wanted = from.into_iter().map(|from| Wanted { from, tag, message: None }).collect();
        self.0.exchanges.borrow_mut().insert(number, UnderWay { sent, wanted, in_order: false });
        Ok(())
    }

    fn is_through(&self, number: u64) -> Result<bool, TransportError> {
        let mut exchanges = self.0.exchanges.borrow_mut();
        let exchange = exchanges.get_mut(&number).ok_or_else(|| TransportError::not_begun(number))?;
        exchange.is_through(self.0.comm)
    }

    fn end(&self, at: At, number: u64) -> Result<Vec<Vec<u8>>, TransportError> {
        let exchange = self.0.exchanges.borrow_mut().remove(&number);
        self.0.through(at, exchange.ok_or_else(|| TransportError::not_begun(number))?)
    }

    fn send(&self, to: usize, bytes: Vec<u8>) -> Result<(), TransportError> {
        let message = Message::send(self.0.comm, to, MOVE, bytes)?;
        self.0.moves.borrow_mut().sent.push(message);
        Ok(())
    }

    fn receive(&self, from: usize) -> Result<(), TransportError> {
        let wanted = Wanted { from, tag: MOVE, message: None };
        self.0.moves.borrow_mut().wanted.push(wanted);
        Ok(())
    }

    fn finish(&self, at: At) -> Result<Vec<Vec<u8>>, TransportError> {
        let moves = UnderWay { in_order: true, ..self.0.moves.take() };
        if moves.sent.is_empty() && moves.wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.0.through(at, moves)
    }
}

//! A communicator between the processes of an MPI job: one process is one rank.
//!
//! Nothing here blocks inside the library: messages are begun and then tested, with a deadline. If the
//! deadline passes, if another rank gives up, or if the launcher asks this process to end, the ranks **call
//! the roll**. Each rank reports to all others that it is alive and why it stopped, and waits briefly for
//! their reports. Ranks that send nothing are killed, hung or cut off, and every survivor names them. A rank
//! that is computing answers when it next waits.
//!
//! A rank that has printed its findings notifies the others. It ends the job when all ranks that answered
//! have done so.
//!
//! `MPI_Init` and `MPI_Finalize` do block. A [`CallWatchdog`] applies the same time limit to them, and names
//! ranks in the same way.
//!
//! The thread that started the library makes all calls (`MPI_THREAD_FUNNELED`); [`MpiCommunicator`] cannot
//! leave it.

#[cfg(feature = "cuda")]
mod device;
mod pending_exchange;
mod request;
mod roll_files;
mod watchdog;

#[cfg(feature = "cuda")]
use super::DeviceCommunicator;
use super::{CallContext, CommError, Communicator, Purpose};
#[cfg(feature = "cuda")]
use device::MpiDevice;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::topology::Communicator as _;
use mpi::traits::AsRaw as _;
use pending_exchange::{ExpectedMessage, PendingExchange};
use request::{MpiRequest, check_code};
#[cfg(feature = "cuda")]
use std::cell::OnceCell;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::ffi::c_int;
use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
pub use watchdog::StuckCall;
use watchdog::{CallWatchdog, StuckHandler};

const ROLL_TAG: c_int = 1;
const MOVE_TAG: c_int = 2;
/// Tag of the last message of a rank before it ends the job.
const LAST_TAG: c_int = 3;
/// Tags of device memory: exchanges of a step, then moves.
#[cfg(feature = "cuda")]
const DEVICE_TAG: c_int = 4;
#[cfg(feature = "cuda")]
const DEVICE_MOVE_TAG: c_int = 5;
/// Tags of exchanges: `TAG_TURNS` tags from here on in turn, then as many from `PARTIAL_EXCHANGE_TAG` on for
/// exchanges that may end in another order.
const EXCHANGE_TAG: c_int = 16;
const TAG_TURNS: c_int = 1 << 12;
const PARTIAL_EXCHANGE_TAG: c_int = EXCHANGE_TAG + TAG_TURNS;

/// The shortest and the longest wait for answers to a roll call.
const GRACE_LIMITS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];
/// The wait for answers after the launcher has asked this process to end, because it kills soon afterwards.
const ENDING_GRACE: Duration = Duration::from_millis(300);

/// The activity before the first exchange.
const BEFORE_EXCHANGES: CallContext = CallContext::outside(Purpose::Control);

/// One process of an MPI job. Clones share the connection.
#[derive(Clone)]
pub struct MpiCommunicator(Rc<MpiProcess>);

struct MpiProcess {
    /// The library. Only [`Communicator::leave`] drops it, because that waits for all other ranks.
    universe: RefCell<ManuallyDrop<Option<Universe>>>,
    comm: ffi::MPI_Comm,
    rank: usize,
    ranks: usize,
    host: String,
    timeout: Duration,
    /// True if the launcher has asked this process to end.
    ending: Arc<AtomicBool>,
    stuck: StuckHandler,
    /// The watch over `MPI_Init`, until all ranks have met.
    start: RefCell<Option<CallWatchdog>>,
    /// True if this rank has called the roll or given up.
    has_reported: Cell<bool>,
    /// Ranks that answered the roll call.
    answered_ranks: RefCell<Vec<usize>>,
    turn: Cell<c_int>,
    moves: RefCell<PendingExchange>,
    /// Exchanges under way, by number.
    exchanges: RefCell<HashMap<u64, PendingExchange>>,
    /// The GPU of this rank, once it has been assigned.
    #[cfg(feature = "cuda")]
    device: OnceCell<MpiDevice>,
}

impl fmt::Debug for MpiCommunicator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mpi")
            .field("rank", &self.0.rank)
            .field("ranks", &self.0.ranks)
            .finish_non_exhaustive()
    }
}

impl MpiCommunicator {
    /// Joins the MPI job of this process, as started by `mpirun` or `srun`. Without a launcher the job has
    /// one rank. A rank that is silent for `timeout` counts as lost. Call [`Communicator::meet`] next.
    ///
    /// If the library does not return in time, from here or from [`Communicator::leave`], `stuck` runs on a
    /// separate thread. It must end the process without calling the library.
    ///
    /// # Errors
    /// Fails if this process has joined already, or if the library does not support this use.
    pub fn join(
        timeout: Duration,
        stuck: impl Fn(StuckCall) + Send + Sync + 'static,
    ) -> Result<Self, CommError> {
        let library = |call, reason: &str| CommError::Library { call, reason: reason.into() };
        let ending = Arc::new(AtomicBool::new(false));
        #[expect(
            clippy::disallowed_methods,
            reason = "the transport sets a flag, and the program ends the job"
        )]
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&ending))
            .map_err(|error| library("sigaction", &error.to_string()))?;
        let stuck: StuckHandler = Arc::new(stuck);
        let start = CallWatchdog::start("MPI_Init", timeout, &ending, &stuck)?;
        let (universe, threading) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| library("MPI_Init_thread", "it was called before"))?;
        if threading < Threading::Funneled {
            return Err(library(
                "MPI_Init_thread",
                "this MPI library supports only processes with one thread",
            ));
        }
        let world = universe.world();
        let (comm, rank, ranks) = (world.as_raw(), world.rank() as usize, world.size() as usize);
        // SAFETY: the communicator belongs to the library and exists as long as the library runs.
        #[allow(unsafe_code, reason = "a call into the MPI library")]
        check_code("MPI_Comm_set_errhandler", unsafe {
            ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN)
        })?;
        let host = mpi::environment::processor_name().unwrap_or_default();
        start.mark_returned();
        Ok(Self(Rc::new(MpiProcess {
            universe: RefCell::new(ManuallyDrop::new(Some(universe))),
            comm,
            rank,
            ranks,
            host,
            timeout,
            ending,
            stuck,
            start: RefCell::new(Some(start)),
            has_reported: Cell::new(false),
            answered_ranks: RefCell::default(),
            turn: Cell::new(0),
            moves: RefCell::default(),
            exchanges: RefCell::default(),
            #[cfg(feature = "cuda")]
            device: OnceCell::new(),
        })))
    }
}

/// Reports of ranks, by rank.
type RollAnswers = BTreeMap<usize, String>;

impl MpiProcess {
    /// Returns the GPU of this rank.
    #[cfg(feature = "cuda")]
    fn opened_device(&self) -> Result<&MpiDevice, CommError> {
        self.device.get().ok_or_else(|| CommError::no_devices("mpi"))
    }

    fn other_ranks(&self) -> impl Iterator<Item = usize> {
        let me = self.rank;
        (0..self.ranks).filter(move |&rank| rank != me)
    }

    /// Returns the time that other ranks have to answer.
    fn grace_period(&self) -> Duration {
        (self.timeout / 4).clamp(GRACE_LIMITS[0], GRACE_LIMITS[1])
    }

    /// Reports to all others that this rank is alive, and why it gives up if the cause is its own. Does not
    /// wait for delivery.
    fn send_report(&self, tag: c_int, why: &str) {
        for to in self.other_ranks() {
            if let Ok(mut message) = MpiRequest::isend(self.comm, to, tag, why.as_bytes().to_vec()) {
                let _ = message.test();
            }
        }
    }

    /// Collects the reports of other ranks until all have answered or the time is up.
    fn collect_answers(&self, until: Instant) -> RollAnswers {
        let answers = self.collect_reports(ROLL_TAG, until, |answers| answers.len() + 1 == self.ranks);
        self.answered_ranks.replace(answers.keys().copied().collect());
        answers
    }

    /// Collects the reports of other ranks until they are `enough` or the time is up.
    fn collect_reports(
        &self,
        tag: c_int,
        until: Instant,
        enough: impl Fn(&RollAnswers) -> bool,
    ) -> RollAnswers {
        let mut answers = BTreeMap::new();
        let mut coming: Vec<(usize, MpiRequest)> = Vec::new();
        while !enough(&answers) && Instant::now() < until {
            while let Ok(Some(message)) = MpiRequest::try_receive(self.comm, None, tag) {
                coming.push(message);
            }
            let mut rest = Vec::new();
            for (from, mut message) in coming {
                if matches!(message.test(), Ok(true)) {
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

    /// Calls the roll and returns the error that names the lost ranks. Nothing has arrived from `missing`.
    fn call_roll(
        &self,
        at: CallContext,
        waited: Duration,
        missing: impl IntoIterator<Item = usize>,
    ) -> CommError {
        if self.has_reported.replace(true) {
            return CommError::Ended { at };
        }
        self.send_report(ROLL_TAG, "");
        // Ranks that are still in `MPI_Init` receive no messages.
        let start = self.start.borrow();
        start.iter().for_each(CallWatchdog::call_roll);
        let ending = self.ending.load(Ordering::Relaxed);
        let answers =
            self.collect_answers(Instant::now() + if ending { ENDING_GRACE } else { self.grace_period() });
        let is_there = |rank: usize| {
            answers.contains_key(&rank) || start.as_ref().is_some_and(|start| start.has_answered(rank))
        };
        let silent: Vec<usize> = self.other_ranks().filter(|&rank| !is_there(rank)).collect();
        let failed: Vec<_> = answers.into_iter().filter(|(_, why)| !why.is_empty()).collect();
        match () {
            () if !silent.is_empty() || !failed.is_empty() => CommError::Lost { at, silent, failed, waited },
            () if self.ending.load(Ordering::Relaxed) => CommError::Ended { at },
            () => CommError::Late { at, missing: missing.into_iter().collect(), waited },
        }
    }

    /// Tests until everything has arrived. If waiting has to stop earlier, returns the time waited.
    fn wait_until(
        &self,
        mut all_here: impl FnMut() -> Result<bool, CommError>,
    ) -> Result<Option<Duration>, CommError> {
        let begun = Instant::now();
        let mut turns = 0u32;
        if self.has_reported.get() {
            return Ok(Some(Duration::ZERO));
        }
        loop {
            // Also checked first: a process that never has to wait would otherwise ignore the request to end.
            if turns.is_multiple_of(16) {
                let called = self.is_roll_called()?;
                if called || self.ending.load(Ordering::Relaxed) || begun.elapsed() > self.timeout {
                    return Ok(Some(begun.elapsed()));
                }
            }
            if all_here()? {
                return Ok(None);
            }
            turns = turns.wrapping_add(1);
            if turns.is_multiple_of(16) {
                // On a machine with fewer cores than ranks, another rank needs the core.
                std::thread::yield_now();
            }
        }
    }

    /// Returns whether another rank has called the roll. Leaves its message for [`MpiProcess::answers`].
    fn is_roll_called(&self) -> Result<bool, CommError> {
        let mut flag: c_int = 0;
        // SAFETY: the flag is allocated, and the status is ignored.
        #[allow(unsafe_code, reason = "a call into the MPI library")]
        let code = unsafe {
            ffi::MPI_Iprobe(
                ffi::RSMPI_ANY_SOURCE,
                ROLL_TAG,
                self.comm,
                &raw mut flag,
                ffi::RSMPI_STATUS_IGNORE,
            )
        };
        check_code("MPI_Iprobe", code)?;
        Ok(flag != 0)
    }

    /// Waits for messages to be sent and received. Returns the received ones.
    fn wait_exchange(
        &self,
        at: CallContext,
        mut under_way: PendingExchange,
    ) -> Result<Vec<Vec<u8>>, CommError> {
        let waited = self.wait_until(|| under_way.test(self.comm))?;
        let wanted = under_way.wanted;
        if let Some(waited) = waited {
            let missing = wanted.iter().filter(|wanted| waited > self.timeout && wanted.message.is_none());
            return Err(self.call_roll(at, waited, missing.map(|wanted| wanted.from)));
        }
        Ok(wanted.into_iter().filter_map(|wanted| wanted.message).map(MpiRequest::into_bytes).collect())
    }
}

impl Communicator for MpiCommunicator {
    fn name(&self) -> &'static str {
        "mpi"
    }

    fn ranks(&self) -> usize {
        self.0.ranks
    }

    fn local_ranks(&self) -> Range<usize> {
        self.0.rank..self.0.rank + 1
    }

    fn host(&self) -> String {
        self.0.host.clone()
    }

    fn meet(&self) -> Result<(), CommError> {
        self.all_to_all_v(BEFORE_EXCHANGES, vec![Vec::new(); self.ranks()])?;
        if let Some(start) = self.0.start.take() {
            start.stop();
        }
        Ok(())
    }

    fn leave(&self, at: CallContext) -> Result<(), CommError> {
        self.all_to_all_v(at, vec![Vec::new(); self.ranks()])?;
        let process = &self.0;
        let end = CallWatchdog::start("MPI_Finalize", process.timeout, &process.ending, &process.stuck)?;
        drop(process.universe.borrow_mut().take());
        end.stop();
        Ok(())
    }

    /// Notifies all others unless the roll has been called, and ends the job even if processes hang. Returns
    /// if the launcher is already ending the job.
    fn abort(&self, reason: &str) {
        let process = &self.0;
        if !process.has_reported.replace(true) {
            process.send_report(ROLL_TAG, reason);
            // Gives the other ranks time to report before the launcher ends them.
            process.collect_answers(Instant::now() + ENDING_GRACE);
        }
        process.send_report(LAST_TAG, "");
        let ending = || process.ending.load(Ordering::Relaxed);
        // Ending the job also ends ranks that have not reported yet. Such a rank called the roll later than
        // this one, by at most one waiting time for answers, and then waits equally long.
        let there = process.answered_ranks.borrow();
        let all = |said: &RollAnswers| ending() || there.iter().all(|rank| said.contains_key(rank));
        process.collect_reports(LAST_TAG, Instant::now() + process.grace_period() + ENDING_GRACE, all);
        // Gives the launcher time to read the output, because it stops reading when all processes have ended.
        std::thread::sleep(ENDING_GRACE);
        if !ending() {
            // SAFETY: the library runs until `leave`.
            #[allow(unsafe_code, reason = "a call into the MPI library")]
            unsafe {
                ffi::MPI_Abort(process.comm, 1);
            }
        }
    }

    #[cfg(feature = "cuda")]
    fn devices(&self) -> Result<&dyn DeviceCommunicator, CommError> {
        Ok(self)
    }

    fn all_to_all_v(&self, at: CallContext, mut parcels: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        let process = &self.0;
        let (me, ranks) = (process.rank, process.ranks);
        let turn = process.turn.get();
        process.turn.set((turn + 1) % TAG_TURNS);
        let tag = EXCHANGE_TAG + turn;
        let own = std::mem::take(&mut parcels[me]);
        // Every rank sends first to the next rank, so that not all send to the same one at once.
        let order = (1..ranks).map(|step| (me + step) % ranks);
        let send = |to: usize| MpiRequest::isend(process.comm, to, tag, std::mem::take(&mut parcels[to]));
        let sent = order.map(send).collect::<Result<Vec<_>, _>>()?;
        let wanted = process.other_ranks().map(|from| ExpectedMessage { from, tag, message: None }).collect();
        let mut came = process.wait_exchange(at, PendingExchange { sent, wanted, in_order: false })?;
        came.insert(me, own);
        Ok(came)
    }

    fn start_exchange(
        &self,
        number: u64,
        to: Vec<(usize, Vec<u8>)>,
        from: Vec<usize>,
    ) -> Result<(), CommError> {
        let tag = PARTIAL_EXCHANGE_TAG + (number % TAG_TURNS as u64) as c_int;
        let send = |(to, bytes)| MpiRequest::isend(self.0.comm, to, tag, bytes);
        let sent = to.into_iter().map(send).collect::<Result<_, _>>()?;
        let wanted = from.into_iter().map(|from| ExpectedMessage { from, tag, message: None }).collect();
        self.0.exchanges.borrow_mut().insert(number, PendingExchange { sent, wanted, in_order: false });
        Ok(())
    }

    fn test(&self, number: u64) -> Result<bool, CommError> {
        let mut exchanges = self.0.exchanges.borrow_mut();
        let exchange = exchanges.get_mut(&number).ok_or_else(|| CommError::not_started(number))?;
        exchange.test(self.0.comm)
    }

    fn wait(&self, at: CallContext, number: u64) -> Result<Vec<Vec<u8>>, CommError> {
        let exchange = self.0.exchanges.borrow_mut().remove(&number);
        self.0.wait_exchange(at, exchange.ok_or_else(|| CommError::not_started(number))?)
    }

    fn isend(&self, to: usize, bytes: Vec<u8>) -> Result<(), CommError> {
        let message = MpiRequest::isend(self.0.comm, to, MOVE_TAG, bytes)?;
        self.0.moves.borrow_mut().sent.push(message);
        Ok(())
    }

    fn irecv(&self, from: usize) -> Result<(), CommError> {
        let wanted = ExpectedMessage { from, tag: MOVE_TAG, message: None };
        self.0.moves.borrow_mut().wanted.push(wanted);
        Ok(())
    }

    fn wait_all(&self, at: CallContext) -> Result<Vec<Vec<u8>>, CommError> {
        let moves = PendingExchange { in_order: true, ..self.0.moves.take() };
        if moves.sent.is_empty() && moves.wanted.is_empty() {
            return Ok(Vec::new());
        }
        self.0.wait_exchange(at, moves)
    }
}

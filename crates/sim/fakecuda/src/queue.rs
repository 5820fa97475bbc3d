//! Streams and events: work that is noted when it is asked for and done when somebody waits.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use crate::{blaslt::Product, config::Order, host::HostRange, module::Prepared};

/// Number of a stream of a device. [`NULL_STREAM`] always exists.
pub(crate) type StreamId = usize;
pub(crate) type EventId = usize;

pub(crate) const NULL_STREAM: StreamId = 0;

/// Bytes from the program.
pub(crate) enum Source {
    /// Taken when the copy was asked for, as for pageable memory.
    Staged(Vec<u8>),
    /// Read when the copy runs.
    PageLocked(HostRange),
}

pub(crate) enum Task {
    CopyIn {
        to: u64,
        from: Source,
    },
    CopyOut {
        to: HostRange,
        from: u64,
    },
    CopyWithin {
        to: u64,
        from: u64,
        bytes: usize,
    },
    Fill {
        to: u64,
        value: u8,
        bytes: usize,
    },
    Launch(Arc<Prepared>),
    /// cuBLASLt's.
    Product(Box<Product>),
    Free(u64),
    /// The event's nth recording.
    Record(EventId, u64),
    Wait(EventId, u64),
}

#[derive(Default)]
struct Event {
    /// Recordings that were asked for, and that were reached.
    asked: u64,
    reached: u64,
    /// Stream of the last one.
    stream: StreamId,
}

/// All streams and events of one device.
pub(crate) struct Queues {
    streams: BTreeMap<StreamId, VecDeque<Task>>,
    /// Streams that were destroyed with work left.
    orphans: Vec<StreamId>,
    events: BTreeMap<EventId, Event>,
    next: usize,
    order: Order,
    random: u64,
}

impl Queues {
    pub fn new(order: Order) -> Self {
        let random = if let Order::Shuffled(seed) = order { seed | 1 << 63 } else { 1 };
        let streams = BTreeMap::from([(NULL_STREAM, VecDeque::new())]);
        // Handles look like pointers, and 1 and 2 name the legacy and the per-thread stream.
        Self { streams, orphans: Vec::new(), events: BTreeMap::new(), next: 0x1000, order, random }
    }

    pub fn create_stream(&mut self) -> StreamId {
        self.next += 0x10;
        self.streams.insert(self.next, VecDeque::new());
        self.next
    }

    /// Its work stays, and is done with what others wait for.
    pub fn destroy_stream(&mut self, stream: StreamId) -> bool {
        let known = stream != NULL_STREAM && self.is_stream(stream);
        if known {
            self.orphans.push(stream);
        }
        known
    }

    pub fn is_stream(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream) && !self.orphans.contains(&stream)
    }

    pub fn create_event(&mut self) -> EventId {
        self.next += 0x10;
        self.events.insert(self.next, Event::default());
        self.next
    }

    pub fn is_event(&self, event: EventId) -> bool {
        self.events.contains_key(&event)
    }

    /// Whoever waits for it already still does.
    pub fn destroy_event(&mut self, event: EventId) -> bool {
        self.is_event(event)
    }

    pub fn push(&mut self, stream: StreamId, task: Task) {
        self.streams.entry(stream).or_default().push_back(task);
    }

    pub fn record(&mut self, event: EventId, stream: StreamId) {
        let Some(state) = self.events.get_mut(&event) else { return };
        state.asked += 1;
        state.stream = stream;
        let recording = state.asked;
        self.push(stream, Task::Record(event, recording));
    }

    /// The stream goes on only after the event's last recording so far; at once if there is none.
    pub fn wait(&mut self, stream: StreamId, event: EventId) {
        let asked = self.events.get(&event).map_or(0, |state| state.asked);
        self.push(stream, Task::Wait(event, asked));
    }

    pub fn is_idle(&self, stream: StreamId) -> bool {
        self.streams.get(&stream).is_none_or(VecDeque::is_empty)
    }

    /// Whether the last recording was reached.
    pub fn is_reached(&self, event: EventId) -> bool {
        self.events.get(&event).is_none_or(|state| state.reached >= state.asked)
    }

    /// Stream of the event's last recording.
    pub fn stream_of(&self, event: EventId) -> StreamId {
        self.events.get(&event).map_or(NULL_STREAM, |state| state.stream)
    }

    /// Forgets all work, as after an error that stays.
    pub fn clear(&mut self) {
        self.streams.values_mut().for_each(VecDeque::clear);
        self.events.values_mut().for_each(|event| event.reached = event.asked);
    }

    /// The next piece of work on the way to where `wanted` is idle; `None` when it is.
    pub fn next(&mut self, wanted: StreamId) -> Option<Task> {
        while !self.is_idle(wanted) {
            let stream = match self.order {
                Order::OwnFirst => wanted,
                Order::OthersFirst => {
                    self.ready().into_iter().find(|stream| *stream != wanted).unwrap_or(wanted)
                }
                Order::Shuffled(_) => {
                    let ready = self.ready();
                    self.random ^= self.random >> 12;
                    self.random ^= self.random << 25;
                    self.random ^= self.random >> 27;
                    let pick = self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32;
                    ready.get(pick as usize % ready.len().max(1)).copied().unwrap_or(wanted)
                }
            };
            if let Some(task) = self.pop(stream) {
                return Some(task);
            }
        }
        None
    }

    /// Streams whose first task can be done now.
    fn ready(&self) -> Vec<StreamId> {
        let ready = |tasks: &VecDeque<Task>| match tasks.front() {
            Some(Task::Wait(event, recording)) => self.has_reached(*event, *recording),
            front => front.is_some(),
        };
        self.streams.iter().filter(|(_, tasks)| ready(tasks)).map(|(stream, _)| *stream).collect()
    }

    fn has_reached(&self, event: EventId, recording: u64) -> bool {
        self.events.get(&event).is_none_or(|state| state.reached >= recording)
    }

    /// Takes the stream's first task, or that of the stream it waits for; bookkeeping is done here, and gives nothing.
    fn pop(&mut self, mut stream: StreamId) -> Option<Task> {
        // A recording is asked for before anybody waits for it, so that waits cannot go in a circle.
        while let Some(Task::Wait(event, recording)) = self.streams.get(&stream)?.front() {
            let (event, recording) = (*event, *recording);
            if self.has_reached(event, recording) {
                break;
            }
            stream = self.recorder(event, recording)?;
        }
        match self.streams.get_mut(&stream)?.pop_front()? {
            Task::Record(event, recording) => {
                if let Some(state) = self.events.get_mut(&event) {
                    state.reached = state.reached.max(recording);
                }
                None
            }
            Task::Wait(..) => None,
            task => Some(task),
        }
    }

    /// The stream that holds a recording which was not reached.
    fn recorder(&self, event: EventId, recording: u64) -> Option<StreamId> {
        let holds = |task: &Task| matches!(task, Task::Record(e, n) if *e == event && *n >= recording);
        self.streams.iter().find(|(_, tasks)| tasks.iter().any(holds)).map(|(stream, _)| *stream)
    }

    /// All streams that have work.
    pub fn busy(&self) -> Vec<StreamId> {
        self.streams.iter().filter(|(_, tasks)| !tasks.is_empty()).map(|(stream, _)| *stream).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Addresses freed, in the order in which waiting for `wanted` does them.
    fn order_of(queues: &mut Queues, wanted: StreamId) -> Vec<u64> {
        let mut done = Vec::new();
        while let Some(task) = queues.next(wanted) {
            if let Task::Free(address) = task {
                done.push(address);
            }
        }
        done
    }

    fn two_streams(order: Order, waits: bool) -> (Queues, StreamId, StreamId) {
        let mut queues = Queues::new(order);
        let (first, second) = (queues.create_stream(), queues.create_stream());
        let event = queues.create_event();
        queues.push(first, Task::Free(1));
        queues.record(event, first);
        queues.push(first, Task::Free(2));
        if waits {
            queues.wait(second, event);
        }
        queues.push(second, Task::Free(3));
        (queues, first, second)
    }

    #[test]
    fn only_what_is_waited_for_is_sure_to_have_happened() {
        let (mut queues, _, second) = two_streams(Order::OwnFirst, false);
        assert_eq!(order_of(&mut queues, second), [3]);
        let (mut queues, first, second) = two_streams(Order::OwnFirst, true);
        assert_eq!(order_of(&mut queues, second), [1, 3], "the event, but not what comes after it");
        assert_eq!(order_of(&mut queues, first), [2]);
        let (mut queues, _, second) = two_streams(Order::OthersFirst, false);
        assert_eq!(order_of(&mut queues, second), [1, 2, 3]);
    }

    #[test]
    fn a_shuffle_keeps_to_events() {
        let orders: Vec<Vec<u64>> = (0..64)
            .map(|seed| {
                let (mut queues, first, second) = two_streams(Order::Shuffled(seed), true);
                let mut done = order_of(&mut queues, second);
                done.extend(order_of(&mut queues, first));
                done
            })
            .collect();
        assert!(orders.iter().all(|done| done.len() == 3 && done[0] == 1), "{orders:?}");
        assert!(orders.contains(&vec![1, 2, 3]) && orders.contains(&vec![1, 3, 2]));
    }

    #[test]
    fn events_count_recordings() {
        let mut queues = Queues::new(Order::OwnFirst);
        let (stream, event) = (queues.create_stream(), queues.create_event());
        assert!(queues.is_reached(event), "nothing was recorded");
        queues.record(event, stream);
        assert!(!queues.is_reached(event));
        assert!(order_of(&mut queues, stream).is_empty() && queues.is_reached(event));
        queues.record(event, stream);
        assert!(!queues.is_reached(event), "recorded anew");
        queues.clear();
        assert!(queues.is_reached(event) && queues.is_idle(stream));
        assert!(
            queues.destroy_stream(stream)
                && !queues.destroy_stream(stream)
                && !queues.destroy_stream(NULL_STREAM)
        );
    }
}

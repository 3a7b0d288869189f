//! What happens to clients: connections, questions, answers.

use synod_api::{Answer, Refusal};
use synod_client::{Action, Cause, Error, Moment, Outcome};

use super::clients::Connection;
use super::history::Ask;
use super::network::delay;
use super::node::Input;
use super::swarm::around;
use super::verdict::{Checker, Verdict, violation};
use super::world::{Event, World};

const TO_REPLICA: usize = 0;
const TO_CLIENT: usize = 1;

/// What a replica sees after a while: that there is room again, or that a majority is equal again.
fn is_passing(error: &Error) -> bool {
    matches!(&error.failure().cause, Cause::Refused(Refusal::DiskFull(_) | Refusal::Diverged))
}

impl World {
    /// A client asks its next question.
    pub(crate) fn ask(&mut self, index: usize) -> Verdict {
        let client = &mut self.clients[index];
        let (last, deadline) = match self.must_end {
            None => (false, self.now + self.swarm.patience),
            Some(must_end) if client.last_left > 0 => {
                client.last_left -= 1;
                // Where logs are full nobody may lead, and then nobody tells a read index either (seed 83).
                let is_full = self.swarm.segments_max.is_some();
                (true, if is_full { must_end.min(self.now + self.swarm.patience) } else { must_end })
            }
            Some(_) => return Ok(()),
        };
        let ask = match client.only_reads {
            true => client.draw_read(&self.swarm, self.history.begin(), last, &mut self.random.people),
            false => client.draw(index, &self.swarm, &self.seen, &mut self.random.people),
        };
        self.trace.say(self.now, || format!("client {index} asks {ask:?}"));
        client.ask(self.now, ask, self.history.begin(), last, deadline);
        self.drive(index)
    }

    pub(crate) fn client_wake(&mut self, index: usize) -> Verdict {
        let client = &mut self.clients[index];
        if client.wake_at == self.now {
            client.wake_at = u64::MAX;
        }
        if client.core.next_deadline().is_some_and(|deadline| self.now >= deadline.0) {
            client.core.tick(Moment(self.now));
        }
        self.drive(index)
    }

    /// Does what the client's core wants, until it wants nothing more.
    fn drive(&mut self, index: usize) -> Verdict {
        loop {
            let client = &mut self.clients[index];
            if let Some(action) = client.core.poll_action() {
                self.act(index, action);
            } else if let Some((attempt, pieces)) = client.core.take() {
                let bytes = pieces.concat();
                client.core.sent(Moment(self.now), attempt, pieces, bytes.len());
                let connection = client.connection.expect("there is a connection to send on");
                self.send_bytes(connection, TO_REPLICA, bytes);
            } else if let Some((id, result)) = client.core.poll_completed() {
                let pending = client.pending.remove(&id).expect("a request ends once");
                self.trace.say(self.now, || format!("client {index}: {:?} ended with {result:?}", pending.ask));
                match result {
                    Ok(answer) => {
                        self.counts.operations += 1;
                        self.remember(&pending.ask, &answer);
                        if let Answer::Read { revision, .. } = answer {
                            let shown = &mut self.clients[index].shown;
                            *shown = revision.0.max(*shown);
                        }
                        self.history.answered(&pending.ask, pending.floor, &answer, &self.oracle.changes)?;
                    }
                    // A log that is full takes nothing more, and says so.
                    Err(error) if pending.last && self.swarm.segments_max.is_none() && !is_passing(&error) => {
                        let what = format!("long after faults have stopped client {index} is told: {error}");
                        return violation(Checker::Liveness, what);
                    }
                    Err(error) => {
                        self.counts.failures += 1;
                        // With room again it takes a moment until that is seen: somebody else asks until it is.
                        self.clients[index].last_left += u32::from(pending.last && is_passing(&error));
                        match error.outcome() {
                            Outcome::DidNotHappen => self.history.did_not_happen(&pending.ask, &self.oracle)?,
                            Outcome::Unknown => self.counts.unknown += 1,
                        }
                    }
                }
                let delay = around(&mut self.random.people, self.swarm.think_mean);
                self.schedule_in(delay, Event::Ask { client: index });
            } else {
                break;
            }
        }
        let client = &mut self.clients[index];
        if let Some(deadline) = client.core.next_deadline()
            && deadline.0 < client.wake_at
        {
            client.wake_at = deadline.0.max(self.now);
            let at = client.wake_at;
            self.schedule(at, Event::ClientWake { client: index });
        }
        Ok(())
    }

    /// What a key held, as far as anybody was told: for swaps that have a chance.
    fn remember(&mut self, ask: &Ask, answer: &Answer) {
        match (ask, answer) {
            (Ask::Put { key, value }, Answer::Written { .. })
            | (Ask::Swap { key, value, .. }, Answer::Swapped { .. }) => {
                self.seen.insert(key.clone(), value.clone());
            }
            (Ask::Get { key }, Answer::Value { value, .. })
            | (Ask::Swap { key, .. }, Answer::Unequal { current: Some(value) }) => {
                self.seen.insert(key.clone(), value.to_vec());
            }
            (Ask::Get { key } | Ask::Delete { key } | Ask::Swap { key, .. }, _) => {
                self.seen.remove(key);
            }
            _ => {}
        }
    }

    fn act(&mut self, index: usize, action: Action) {
        match action {
            Action::Dial { attempt, endpoint } => {
                let replica = self.nodes.iter().position(|node| super::node::address(node.id) == *endpoint);
                let replica = replica.expect("clients only dial replicas");
                let connection = self.connections.len();
                self.connections.push(Connection::new(index, attempt, replica));
                self.clients[index].connection = Some(connection);
                // Over a link that is cut nothing comes back, not even a refusal.
                if self.network.reaches_clients(replica) {
                    let delay = delay(&self.swarm, &mut self.random.network);
                    self.schedule_in(delay, Event::Dialed { connection });
                }
            }
            Action::Close { attempt } => {
                // The words on their way to the replica still arrive.
                if let Some(connection) = self.clients[index].connection
                    && self.connections[connection].attempt == attempt
                {
                    self.connections[connection].open_at_client = false;
                    self.clients[index].connection = None;
                }
            }
        }
    }

    /// The dial arrives.
    pub(crate) fn dialed(&mut self, connection: usize) {
        let replica = self.connections[connection].replica;
        let delay = delay(&self.swarm, &mut self.random.network);
        if self.nodes[replica].engine.is_some() {
            self.connections[connection].life = Some(self.nodes[replica].life);
            self.schedule_in(delay, Event::Accepted { connection });
        } else {
            self.schedule_in(delay, Event::Lost { connection });
        }
    }

    pub(crate) fn accepted(&mut self, connection: usize) -> Verdict {
        let Connection { client, attempt, open_at_client, .. } = self.connections[connection];
        if !open_at_client {
            return Ok(());
        }
        self.clients[client].core.connected(Moment(self.now), attempt);
        self.drive(client)
    }

    pub(crate) fn lost(&mut self, connection: usize) -> Verdict {
        let Connection { client, attempt, open_at_client, .. } = self.connections[connection];
        if !open_at_client {
            return Ok(());
        }
        self.connections[connection].open_at_client = false;
        self.connections[connection].broken = true;
        if self.clients[client].connection == Some(connection) {
            self.clients[client].connection = None;
        }
        self.clients[client].core.lost(Moment(self.now), attempt, "the connection was lost");
        self.drive(client)
    }

    /// The answers of a turn leave.
    pub(crate) fn send_answers(&mut self) {
        for connection in std::mem::take(&mut self.answering) {
            let bytes = std::mem::take(&mut self.connections[connection].outbound);
            self.send_bytes(connection, TO_CLIENT, bytes);
        }
    }

    /// The connection breaks, with what was on its way to the client.
    pub(crate) fn reset(&mut self, connection: usize) {
        let attempt = &mut self.connections[connection];
        if !attempt.broken {
            (attempt.broken, attempt.outbound) = (true, Vec::new());
            let delay = delay(&self.swarm, &mut self.random.network);
            self.schedule_in(delay, Event::Lost { connection });
        }
    }

    fn send_bytes(&mut self, connection: usize, direction: usize, bytes: Vec<u8>) {
        let attempt = &mut self.connections[connection];
        if attempt.broken {
            return;
        }
        if !self.network.reaches_clients(attempt.replica) {
            attempt.broken = true;
            return;
        }
        let (reset, later) = self.network.client_bytes();
        let delay = delay(&self.swarm, &mut self.random.network) + later;
        if reset {
            self.counts.resets += 1;
            attempt.broken = true;
            return self.schedule_in(delay, Event::Lost { connection });
        }
        let at = attempt.last[direction].max(self.now + delay);
        attempt.last[direction] = at;
        self.schedule(
            at,
            match direction {
                TO_REPLICA => Event::ToReplica { connection, bytes },
                _ => Event::ToClient { connection, bytes },
            },
        );
    }

    pub(crate) fn arrived_at_replica(&mut self, connection: usize, bytes: Vec<u8>) {
        let Connection { replica, life, .. } = self.connections[connection];
        match life {
            Some(life) if self.is_alive(replica, life) => {
                self.input(replica, Input::Client { connection, bytes });
            }
            // It has crashed meanwhile, and its machine knows nothing of this connection.
            _ => {
                let delay = delay(&self.swarm, &mut self.random.network);
                self.schedule_in(delay, Event::Lost { connection });
            }
        }
    }

    pub(crate) fn arrived_at_client(&mut self, connection: usize, bytes: &[u8]) -> Verdict {
        let Connection { client, attempt, open_at_client, .. } = self.connections[connection];
        if !open_at_client {
            return Ok(());
        }
        self.clients[client].core.received(Moment(self.now), attempt, bytes);
        self.drive(client)
    }
}

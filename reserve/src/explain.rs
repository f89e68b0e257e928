//! The wait graph: a stuck machine explains itself.
//!
//! A driver whose machine has stopped draws a graph of who waits for what and of who holds what, as it
//! is at that moment. The analysis finds what can never go on again, and in it a cycle that memory is
//! part of: the deadlock. Stuck without such a cycle is something else (a leak, a lost message), and is
//! reported as what it is.
//!
//! What can go on is a least fixpoint. A *moving* node can. An *any* node can if one of the things it
//! waits for can; an *all* node if all can. A waiting node without anything to wait for never can: what
//! it waits for does not exist. The rest is stuck, and each stuck node that is no dead end waits for
//! another stuck one, so following them ends in a dead end or in a cycle.
//!
//! Everything is iterative and in insertion order: the same graph gives the same words.

use std::collections::VecDeque;
use std::fmt::{self, Write};

use crate::time::Time;

/// Names a node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

/// When a node can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// As soon as one of the things it waits for comes.
    Any,
    /// When all the things it waits for have come.
    All,
    /// By itself: a timer that runs, a packet on a wire that works.
    Moving,
}

#[derive(Clone, Debug)]
struct Node {
    label: String,
    kind: NodeKind,
    memory: bool,
    allowed_by: Vec<&'static str>,
    edges: Vec<Edge>,
}

#[derive(Clone, Debug)]
struct Edge {
    to: usize,
    phrase: String,
    detail: String,
    /// Counts in the analysis, but is told only in a cycle that cannot be told without it.
    aside: bool,
}

/// Who waits for what. See the module for what the analysis means.
///
/// ```
/// use netswap_reserve::explain::{NodeKind, Verdict, WaitGraph};
///
/// let mut graph = WaitGraph::new();
/// let task = graph.node("task 3", NodeKind::Any);
/// let reclaim = graph.node("reclaim", NodeKind::Any);
/// let frames = graph.node("frames", NodeKind::Any);
/// graph.memory(frames);
/// graph.edge(task, reclaim, "waits for a frame", "0 of 64 free");
/// graph.edge(reclaim, frames, "waits for a packet buffer", "ring empty");
/// graph.edge(frames, task, "held by udp:7", "60 frames");
/// assert!(matches!(graph.analyse(), Verdict::Deadlock(_)));
/// ```
#[derive(Clone, Debug, Default)]
pub struct WaitGraph {
    nodes: Vec<Node>,
}

/// What the analysis found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Everything can go on.
    Moves,
    /// A cycle of waiting that memory is part of.
    Deadlock(Cycle),
    /// Something can never go on, but there is no cycle with memory in it.
    NoCycle {
        /// Where the waiting ends.
        ends: Vec<DeadEnd>,
    },
}

/// Where waiting ends without a cycle through memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadEnd {
    /// The node.
    pub node: NodeId,
    /// Its label.
    pub label: String,
    /// Whether it holds memory: then this looks like a leak.
    pub memory: bool,
    /// Whether it is part of a cycle (of things that are not memory) rather than waiting for nothing.
    pub in_cycle: bool,
}

impl fmt::Display for DeadEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match (self.in_cycle, self.memory) {
            (true, _) => "waits for itself, without memory in the cycle",
            (false, true) => "never comes back: nobody is there to free it",
            (false, false) => "waits for something that nobody will do",
        };
        write!(f, "{} {what}", self.label)
    }
}

/// One line of a cycle: a node, and its edge to the next.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Step {
    node: NodeId,
    /// Label and phrase.
    text: String,
    detail: String,
}

/// A cycle of waiting. Displayed, it is one line a node; [`Cycle::explain`] adds when it began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle {
    steps: Vec<Step>,
    allowed_by: Vec<&'static str>,
}

impl WaitGraph {
    /// A graph without nodes.
    pub fn new() -> WaitGraph {
        WaitGraph::default()
    }

    /// Adds a node. Tasks are best added first: a cycle is told from its first node that is not memory.
    pub fn node(&mut self, label: impl Into<String>, kind: NodeKind) -> NodeId {
        self.nodes.push(Node {
            label: label.into(),
            kind,
            memory: false,
            allowed_by: Vec::new(),
            edges: Vec::new(),
        });
        NodeId(self.nodes.len() - 1)
    }

    /// Marks a node as memory: a frame, a buffer, a window.
    pub fn memory(&mut self, node: NodeId) {
        self.nodes[node.0].memory = true;
    }

    /// `from` waits for `to`, or is held by it. It prints as `-> from phrase    detail`.
    ///
    /// # Panics
    /// When one of them is not a node of this graph.
    pub fn edge(
        &mut self,
        from: NodeId,
        to: NodeId,
        phrase: impl Into<String>,
        detail: impl Into<String>,
    ) {
        self.push_edge(from, to, phrase.into(), detail.into(), false);
    }

    /// As [`WaitGraph::edge`], for something that `from` could also get what it waits for from: it
    /// counts in the analysis, but a cycle is told without it if there is one.
    pub fn edge_aside(
        &mut self,
        from: NodeId,
        to: NodeId,
        phrase: impl Into<String>,
        detail: impl Into<String>,
    ) {
        self.push_edge(from, to, phrase.into(), detail.into(), true);
    }

    fn push_edge(&mut self, from: NodeId, to: NodeId, phrase: String, detail: String, aside: bool) {
        assert!(to.0 < self.nodes.len(), "both ends of an edge are nodes of this graph");
        self.nodes[from.0].edges.push(Edge { to: to.0, phrase, detail, aside });
    }

    /// Names the protection whose absence the state of this node shows.
    pub fn allowed_by(&mut self, node: NodeId, protection: &'static str) {
        let allowed_by = &mut self.nodes[node.0].allowed_by;
        if !allowed_by.contains(&protection) {
            allowed_by.push(protection);
        }
    }

    /// Finds out what can go on, and if not everything can, why.
    pub fn analyse(&self) -> Verdict {
        let moves = self.moves();
        if moves.iter().all(|&m| m) {
            return Verdict::Moves;
        }
        let told = self.shortest_cycle(&self.knots(&moves, false), false);
        let knots = self.knots(&moves, true);
        match told.or_else(|| self.shortest_cycle(&knots, true)) {
            Some(nodes) => Verdict::Deadlock(self.cycle(&nodes)),
            None => Verdict::NoCycle { ends: self.dead_ends(&moves, &knots) },
        }
    }

    /// For each node whether it can go on: the least fixpoint, by a work list over reversed edges.
    fn moves(&self) -> Vec<bool> {
        let mut waiters = vec![Vec::new(); self.nodes.len()];
        for (from, node) in self.nodes.iter().enumerate() {
            for edge in &node.edges {
                waiters[edge.to].push(from);
            }
        }
        // What each node still needs before it can go on.
        let mut needs: Vec<usize> = self
            .nodes
            .iter()
            .map(|n| match n.kind {
                NodeKind::Moving => 0,
                NodeKind::Any => 1,
                NodeKind::All => n.edges.len().max(1),
            })
            .collect();
        let mut moves: Vec<bool> = needs.iter().map(|&n| n == 0).collect();
        let mut work: Vec<usize> = (0..self.nodes.len()).filter(|&n| moves[n]).collect();
        while let Some(at) = work.pop() {
            for &waiter in &waiters[at] {
                needs[waiter] = needs[waiter].saturating_sub(1);
                if needs[waiter] == 0 && !moves[waiter] {
                    moves[waiter] = true;
                    work.push(waiter);
                }
            }
        }
        moves
    }

    /// For each stuck node that is part of some cycle of stuck nodes, which group of such cycles it
    /// belongs to, named by the first node of the group: the strongly connected components (Kosaraju,
    /// with a stack of its own). Edges aside are followed only if `aside`.
    fn knots(&self, moves: &[bool], aside: bool) -> Vec<Option<usize>> {
        let n = self.nodes.len();
        let mut finished = Vec::with_capacity(n);
        let mut seen = moves.to_vec();
        for start in 0..n {
            if seen[start] {
                continue;
            }
            seen[start] = true;
            let mut stack = vec![(start, 0)];
            while let Some((at, edge)) = stack.last_mut() {
                let Some(next) = self.nodes[*at].edges.get(*edge) else {
                    finished.push(*at);
                    stack.pop();
                    continue;
                };
                *edge += 1;
                if !seen[next.to] && (aside || !next.aside) {
                    seen[next.to] = true;
                    stack.push((next.to, 0));
                }
            }
        }
        let mut reversed = vec![Vec::new(); n];
        for (from, node) in self.nodes.iter().enumerate() {
            let edges = node.edges.iter().filter(|e| aside || !e.aside);
            edges.for_each(|e| reversed[e.to].push(from));
        }
        let mut knots = vec![None; n];
        let mut seen = moves.to_vec();
        for &start in finished.iter().rev() {
            if seen[start] {
                continue;
            }
            seen[start] = true;
            let mut group = vec![start];
            let mut done = 0;
            while let Some(&at) = group.get(done) {
                done += 1;
                for &from in &reversed[at] {
                    if !seen[from] {
                        seen[from] = true;
                        group.push(from);
                    }
                }
            }
            let mut edges = self.nodes[start].edges.iter();
            let loops = edges.any(|e| e.to == start && (aside || !e.aside));
            if group.len() > 1 || loops {
                let name = group.iter().copied().min();
                group.iter().for_each(|&node| knots[node] = name);
            }
        }
        knots
    }

    /// The shortest cycle of stuck nodes through a memory node; of equals, the first in the order of
    /// insertion of the memory nodes.
    fn shortest_cycle(&self, knots: &[Option<usize>], aside: bool) -> Option<Vec<usize>> {
        let mut best: Option<Vec<usize>> = None;
        let memory = (0..self.nodes.len()).filter(|&n| self.nodes[n].memory && knots[n].is_some());
        for start in memory {
            let cycle = self.shortest_cycle_from(knots, start, aside);
            if best.as_ref().is_none_or(|b| cycle.len() < b.len()) {
                best = Some(cycle);
            }
        }
        best
    }

    /// The shortest way from `start`, which is in a knot, back to it: breadth first inside the knot.
    fn shortest_cycle_from(
        &self,
        knots: &[Option<usize>],
        start: usize,
        aside: bool,
    ) -> Vec<usize> {
        let mut came_from = vec![usize::MAX; self.nodes.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(at) = queue.pop_front() {
            let edges = self.nodes[at].edges.iter().filter(|e| aside || !e.aside);
            for to in edges.map(|e| e.to).filter(|&to| knots[to] == knots[start]) {
                if to == start {
                    let mut cycle = vec![at];
                    let mut node = at;
                    while node != start {
                        node = came_from[node];
                        cycle.push(node);
                    }
                    cycle.reverse();
                    return cycle;
                }
                if came_from[to] == usize::MAX {
                    came_from[to] = at;
                    queue.push_back(to);
                }
            }
        }
        unreachable!("a node of a knot has a way back to itself")
    }

    /// The words of a cycle, told from its first waiting node.
    fn cycle(&self, nodes: &[usize]) -> Cycle {
        let waits = |&i: &usize| !self.nodes[nodes[i]].memory;
        let first = (0..nodes.len()).filter(waits).min_by_key(|&i| nodes[i]).unwrap_or(0);
        let mut cycle = Cycle { steps: Vec::new(), allowed_by: Vec::new() };
        for i in 0..nodes.len() {
            let at = nodes[(first + i) % nodes.len()];
            let next = nodes[(first + i + 1) % nodes.len()];
            let node = &self.nodes[at];
            let edge = node.edges.iter().find(|e| e.to == next).expect("neighbours in a cycle");
            cycle.steps.push(Step {
                node: NodeId(at),
                text: format!("{} {}", node.label, edge.phrase),
                detail: edge.detail.clone(),
            });
            for &protection in &node.allowed_by {
                if !cycle.allowed_by.contains(&protection) {
                    cycle.allowed_by.push(protection);
                }
            }
        }
        cycle
    }

    /// Where the waiting ends: stuck nodes that wait for nothing, and the first node of each knot (no
    /// knot has memory in it when this is asked).
    fn dead_ends(&self, moves: &[bool], knots: &[Option<usize>]) -> Vec<DeadEnd> {
        let nothing = |n: &usize| !moves[*n] && self.nodes[*n].edges.is_empty();
        let knot = |n: &usize| knots[*n] == Some(*n);
        (0..self.nodes.len())
            .filter(|n| nothing(n) || knot(n))
            .map(|n| DeadEnd {
                node: NodeId(n),
                label: self.nodes[n].label.clone(),
                memory: self.nodes[n].memory,
                in_cycle: knots[n].is_some(),
            })
            .collect()
    }
}

impl Cycle {
    /// The nodes, in the order they are told.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.steps.iter().map(|s| s.node)
    }

    /// The protections whose absence the nodes of the cycle show.
    pub fn protections(&self) -> &[&'static str] {
        &self.allowed_by
    }

    /// The whole explanation: since when, the cycle, and what allowed it.
    pub fn explain(&self, since: Time) -> String {
        let mut text =
            format!("deadlock since {:.3} s: nothing can free memory\n", since.as_secs_f64());
        write!(text, "{self}").expect("a String takes everything");
        text
    }
}

impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(first) = self.steps.first() else { return Ok(()) };
        let arrow = |i: usize, text: &str| format!("{}{text}", if i == 0 { "" } else { "-> " });
        let mut lines: Vec<(String, &str)> = self
            .steps
            .iter()
            .enumerate()
            .map(|(i, s)| (arrow(i, &s.text), s.detail.as_str()))
            .collect();
        lines.push((arrow(1, &first.text), "... closes the cycle"));
        let width = lines.iter().map(|(text, _)| text.chars().count()).max().unwrap_or(0);
        for (text, detail) in lines {
            writeln!(f, "{}", format!("  {text:width$}  {detail}").trim_end())?;
        }
        if !self.allowed_by.is_empty() {
            let flags: Vec<String> =
                self.allowed_by.iter().map(|p| format!("--ablate {p}")).collect();
            writeln!(f, "allowed by: {}", flags.join(" "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

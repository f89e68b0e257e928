//! The analysis on hand-built graphs.

use super::*;
use crate::time::Span;

/// Nodes that need one of what they wait for.
fn nodes<const N: usize>(g: &mut WaitGraph, names: [&str; N]) -> [NodeId; N] {
    names.map(|name| g.node(name, NodeKind::Any))
}

/// The deadlock of the design's example.
fn example() -> WaitGraph {
    let mut g = WaitGraph::new();
    let [task3, task9, reclaim] = nodes(&mut g, ["task 3", "task 9", "reclaim"]);
    let reply = g.node("reply", NodeKind::All);
    let frames = g.node("frames", NodeKind::Any);
    g.memory(frames);
    g.edge(task3, reclaim, "waits for a frame", "0 of 16384 free, floor 0");
    g.edge(task9, reclaim, "waits for a frame", "0 of 16384 free, floor 0");
    g.edge(reclaim, reply, "waits for WRITE xid 41", "(slot 1930, sent, unanswered)");
    g.edge(reply, frames, "waits for a receive buffer", "64 of 64 ring slots empty");
    g.edge(frames, task9, "held by udp:7 (untagged)", "212 frames, reader: task 9");
    g.allowed_by(frames, "drop");
    g
}

fn cycle_of(graph: &WaitGraph) -> Cycle {
    match graph.analyse() {
        Verdict::Deadlock(cycle) => cycle,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_cycle_through_memory_is_told_as_the_design_shows_it() {
    let expected = "\
deadlock since 1.204 s: nothing can free memory
  task 9 waits for a frame             0 of 16384 free, floor 0
  -> reclaim waits for WRITE xid 41    (slot 1930, sent, unanswered)
  -> reply waits for a receive buffer  64 of 64 ring slots empty
  -> frames held by udp:7 (untagged)   212 frames, reader: task 9
  -> task 9 waits for a frame          ... closes the cycle
allowed by: --ablate drop
";
    assert_eq!(cycle_of(&example()).explain(Time::ZERO + Span::from_millis(1204)), expected);
}

#[test]
fn a_way_out_for_one_of_the_cycle_is_no_deadlock() {
    let mut g = example();
    let timer = g.node("timer", NodeKind::Moving);
    // Reclaim may also free a clean page: an alternative that moves.
    g.edge(NodeId(2), timer, "waits for a clean page", "");
    assert_eq!(g.analyse(), Verdict::Moves);
}

#[test]
fn an_all_node_needs_every_one() {
    let mut g = example();
    let timer = g.node("timer", NodeKind::Moving);
    // The reply needs a buffer and the wire; the wire alone does not help.
    g.edge(NodeId(3), timer, "waits for the wire", "");
    assert!(matches!(g.analyse(), Verdict::Deadlock(_)));
}

#[test]
fn a_leak_is_no_cycle() {
    let mut g = WaitGraph::new();
    let [task, frames] = nodes(&mut g, ["task 1", "64 frames"]);
    g.memory(frames);
    g.edge(task, frames, "waits for a frame", "");
    let Verdict::NoCycle { ends } = g.analyse() else { panic!("a leak has no cycle") };
    assert_eq!(ends.len(), 1);
    assert_eq!((ends[0].node, ends[0].memory, ends[0].in_cycle), (frames, true, false));
    assert!(ends[0].to_string().starts_with("64 frames never comes back"));
}

#[test]
fn a_cycle_without_memory_is_reported_as_such() {
    let mut g = WaitGraph::new();
    let [a, b] = nodes(&mut g, ["a", "b"]);
    g.edge(a, b, "waits for b", "");
    g.edge(b, a, "waits for a", "");
    let Verdict::NoCycle { ends } = g.analyse() else { panic!("no memory in it") };
    assert_eq!(ends.len(), 1);
    assert!(ends[0].in_cycle);
}

#[test]
fn memory_beside_a_cycle_is_not_in_it() {
    let mut g = WaitGraph::new();
    let [frame, a, b] = nodes(&mut g, ["frame", "a", "b"]);
    g.memory(frame);
    g.edge(frame, a, "held by a", "");
    g.edge(a, b, "waits for b", "");
    g.edge(b, a, "waits for a", "");
    assert!(matches!(g.analyse(), Verdict::NoCycle { .. }));
}

#[test]
fn the_shortest_cycle_is_told_and_starts_at_its_first_waiting_node() {
    let mut g = example();
    let window = g.node("window 0", NodeKind::Any);
    g.memory(window);
    g.edge(window, NodeId(0), "held by task 3", "");
    g.edge(NodeId(0), window, "waits for a window", "");
    let cycle = cycle_of(&g);
    assert_eq!(cycle.nodes().collect::<Vec<_>>(), [NodeId(0), window]);
    assert_eq!(cycle.to_string().lines().count(), 3, "nothing there says what allowed it");
    assert_eq!(cycle, cycle_of(&g));
}

#[test]
fn long_chains_need_no_deep_stack() {
    let mut g = WaitGraph::new();
    let nodes: Vec<_> = (0..200_000).map(|i| g.node(format!("n{i}"), NodeKind::Any)).collect();
    for pair in nodes.windows(2) {
        g.edge(pair[0], pair[1], "waits", "");
    }
    g.memory(nodes[0]);
    assert!(matches!(g.analyse(), Verdict::NoCycle { .. }));
    g.edge(nodes[199_999], nodes[0], "waits", "");
    assert!(matches!(g.analyse(), Verdict::Deadlock(c) if c.nodes().count() == 200_000));
    let end = g.node("end", NodeKind::Moving);
    g.edge(nodes[199_999], end, "waits", "");
    assert_eq!(g.analyse(), Verdict::Moves);
}

#[test]
fn an_empty_graph_and_an_empty_node() {
    assert_eq!(WaitGraph::new().analyse(), Verdict::Moves);
    let mut g = WaitGraph::new();
    g.node("all of nothing", NodeKind::All);
    assert!(matches!(g.analyse(), Verdict::NoCycle { .. }));
}

#[test]
fn a_cycle_is_told_without_what_stands_aside_if_it_can_be() {
    let mut graph = WaitGraph::new();
    let [task, reclaim, frames] = nodes(&mut graph, ["task 1", "reclaim", "frames"]);
    let write = graph.node("WRITE", NodeKind::All);
    graph.memory(reclaim);
    graph.memory(frames);
    graph.edge(task, reclaim, "waits for a frame", "");
    graph.edge_aside(reclaim, task, "could get it from", "");
    graph.edge(reclaim, write, "waits for it", "");
    graph.edge(write, frames, "needs", "");
    graph.edge(frames, task, "are held by", "");
    let Verdict::Deadlock(cycle) = graph.analyse() else { panic!("nothing moves") };
    assert_eq!(cycle.nodes().count(), 4, "{cycle}");

    // Without the long way round, the short one is told.
    let mut graph = WaitGraph::new();
    let [task, reclaim] = nodes(&mut graph, ["task 1", "reclaim"]);
    graph.memory(reclaim);
    graph.edge(task, reclaim, "waits for a frame", "");
    graph.edge_aside(reclaim, task, "could get it from", "");
    assert!(matches!(graph.analyse(), Verdict::Deadlock(_)));
}

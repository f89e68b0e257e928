//! Goal: answers that come in another order, in more pieces or otherwise than was expected when the transport was shown
//! where they belong, fill the right pages; nothing is copied for another order alone; and what a target says about
//! itself decides, not where its bytes have landed.
//! Method: a target of which the test writes every answer, cut at every place and at random ones, over a transport that
//! fills several buffers; every page is compared. Counters say that the paths in question were taken.

#[path = "common/script.rs"]
mod script;

use netswap_iscsi::InitiatorConfig;
use netswap_iscsi::pdu::{DataIn, NopIn, RequestPdu, ScsiCommand, ScsiResponse};
use netswap_iscsi::scsi::Cdb;
use netswap_net::Action;
use netswap_reserve::{Gfp, PAGE_SIZE, Span};
use netswap_swap::{Op, Request, RequestId, Slot, StoreError, SwapBackend};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;
use script::{Script, Unit};

fn ready(merge: bool) -> Script {
    let portal = "10.0.0.2:3260".parse().unwrap();
    let config = InitiatorConfig::new(portal, "iqn.2026-01.test:disk", 0).with_all();
    // None waits for others to be merged with.
    let (merge_after, request_timeout) = (64, Span::from_secs(2));
    let config = InitiatorConfig { merge, merge_after, request_timeout, ..config };
    let mut script = Script::new(config, Unit::new());
    script.start();
    assert!(script.backend.is_connected());
    script
}

/// What the unit holds at a byte.
fn content(byte: usize) -> u8 {
    (byte * 7 + byte / PAGE_SIZE * 31) as u8
}

/// First slots of reads of so many pages each, from slot `first` on; some are adjacent.
fn slots(first: u32, pages: &[usize]) -> Vec<u32> {
    let mut next = first;
    let begin = |n: &usize| {
        let slot = next;
        next += (n + n % 2) as u32;
        slot
    };
    pages.iter().map(begin).collect()
}

/// Submits them, and returns the commands that come.
fn reads(script: &mut Script, first: u32, pages: &[usize]) -> Vec<ScsiCommand> {
    for (id, (slot, n)) in slots(first, pages).into_iter().zip(pages).enumerate() {
        let pages = (0..*n).map(|_| script.pool.alloc(Gfp::KERNEL).unwrap()).collect();
        let request = Request {
            id: RequestId(id as u32),
            op: Op::Read,
            first: Slot(slot),
            pages,
            deadline: None,
        };
        script.backend.submit(script.now, request).unwrap();
    }
    script.turn();
    let came = script.came.drain(..).map(|(pdu, _)| match pdu {
        RequestPdu::ScsiCommand(command) => command,
        other => panic!("{other:?}"),
    });
    came.collect()
}

/// First byte and length of what a command reads.
fn extent(command: &ScsiCommand) -> (usize, usize) {
    let Cdb::Read { lba, blocks, .. } = Cdb::parse(&command.cdb) else { panic!("{command:?}") };
    (lba as usize * 512, blocks as usize * 512)
}

/// What a target sends, before it is cut.
struct Stream<'a> {
    script: &'a mut Script,
    bytes: Vec<u8>,
    /// Where PDUs end.
    ends: Vec<usize>,
    data_sn: Vec<(u32, u32)>,
}

impl Stream<'_> {
    fn new(script: &mut Script) -> Stream<'_> {
        Stream { script, bytes: Vec::new(), ends: vec![0], data_sn: Vec::new() }
    }

    fn push(&mut self, mut bhs: [u8; 48], data: &[u8]) {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        self.bytes.extend(bhs);
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.ends.push(self.bytes.len());
    }

    /// Data of a command; with `status`, GOOD.
    fn data(&mut self, command: &ScsiCommand, from: usize, len: usize, status: bool) {
        let sn = match self.data_sn.iter_mut().find(|(itt, _)| *itt == command.itt) {
            Some((_, sn)) => {
                *sn += 1;
                *sn
            }
            None => {
                self.data_sn.push((command.itt, 0));
                0
            }
        };
        let pdu = DataIn {
            last: status,
            acknowledge: false,
            overflow: false,
            underflow: false,
            status: status.then_some(0),
            lun: [0; 8],
            itt: command.itt,
            ttt: u32::MAX,
            sns: self.script.sns(status),
            data_sn: sn,
            offset: from as u32,
            residual: 0,
            data_len: 0,
        };
        let first = extent(command).0 + from;
        let data: Vec<u8> = (first..first + len).map(content).collect();
        self.push(pdu.build(), &data);
    }

    fn response(&mut self, command: &ScsiCommand) {
        let response = ScsiResponse {
            overflow: false,
            underflow: false,
            response: 0,
            status: 0,
            itt: command.itt,
            sns: self.script.sns(true),
            exp_data_sn: 0,
            residual: 0,
            data_len: 0,
        };
        self.push(response.build(), &[]);
    }

    fn nop(&mut self) {
        let sns = self.script.sns(false);
        let nop = NopIn { lun: [0; 8], itt: u32::MAX, ttt: u32::MAX, sns, data_len: 0 };
        self.push(nop.build(), &[]);
    }

    fn all(&mut self, command: &ScsiCommand) {
        self.data(command, 0, extent(command).1, true);
    }
}

/// Every request has ended well, with what the unit holds; the first is at slot `first`.
fn check(script: &mut Script, first: u32, pages: &[usize], what: &str) {
    script.turn();
    let slots = slots(first, pages);
    for _ in pages {
        let end = script.backend.poll_completion(script.now).unwrap_or_else(|| panic!("{what}"));
        let slot = slots[end.id.0 as usize] as usize;
        assert!(end.outcome.is_ok(), "{what}: {:?}", end.outcome);
        for (page, frame) in end.pages.iter().enumerate() {
            let base = (slot + page) * PAGE_SIZE;
            let differs = (0..PAGE_SIZE).find(|at| frame.bytes()[*at] != content(base + at));
            assert_eq!(differs, None, "{what}: request {} page {page}", end.id.0);
        }
    }
    assert_eq!(script.backend.stats().garbage, 0, "{what}");
}

/// Reads of these pages, answered by what `answer` sends, cut at one place after the other. Returns what was exchanged and copied.
fn at_every_cut(pages: &[usize], answer: impl Fn(&mut Stream<'_>, &[ScsiCommand])) -> (u64, u64) {
    let mut script = ready(false);
    let mut cut = 1;
    loop {
        let commands = reads(&mut script, 8, pages);
        let mut stream = Stream::new(&mut script);
        answer(&mut stream, &commands);
        let (bytes, ends) = (stream.bytes, stream.ends);
        let mut first = Some(cut);
        script.pour(&bytes, || first.take().unwrap_or(usize::MAX));
        check(&mut script, 8, pages, &format!("cut at {cut}"));
        // Every place near a header, and every 29th within data.
        let near = |at: usize| ends.iter().any(|end| at + 8 > *end && at < end + 56);
        cut = (cut + 1..cut + 29).find(|at| near(*at)).unwrap_or(cut + 29);
        if cut >= bytes.len() {
            let stats = script.backend.stats();
            return (stats.exchanged, stats.copied_bytes);
        }
    }
}

#[test]
fn answers_in_order_come_in_one_call_and_are_where_they_belong() {
    let mut script = ready(false);
    // How many come at once is learned as they come.
    for round in 0..4 {
        let commands = reads(&mut script, 8, &[1; 12]);
        let mut stream = Stream::new(&mut script);
        commands.iter().for_each(|command| stream.all(command));
        let bytes = stream.bytes;
        let calls = script.pour(&bytes, || usize::MAX);
        check(&mut script, 8, &[1; 12], "in order");
        assert!(round < 3 || calls == 1, "{calls}");
    }
    let stats = script.backend.stats();
    assert_eq!((stats.exchanged, stats.copied_bytes), (0, 0));
}

#[test]
fn answers_in_order_are_where_they_belong_wherever_they_are_cut() {
    let answer = |stream: &mut Stream<'_>, commands: &[ScsiCommand]| {
        commands.iter().for_each(|command| stream.all(command));
    };
    assert_eq!(at_every_cut(&[2, 1, 3], answer), (0, 0));
}

#[test]
fn status_in_a_response_of_its_own_is_expected_after_the_first() {
    let answer = |stream: &mut Stream<'_>, commands: &[ScsiCommand]| {
        for command in commands {
            stream.data(command, 0, extent(command).1, false);
            stream.response(command);
        }
    };
    let (exchanged, copied) = at_every_cut(&[1, 2, 1], answer);
    assert!(exchanged == 0 && copied < 5 * 4096, "{exchanged} {copied}");
}

#[test]
fn answers_in_another_order_change_pages_and_are_not_copied() {
    let answer = |stream: &mut Stream<'_>, commands: &[ScsiCommand]| {
        for at in [2, 0, 3, 1] {
            stream.all(&commands[at]);
        }
    };
    let (exchanged, copied) = at_every_cut(&[1; 4], answer);
    assert!(exchanged > 100, "{exchanged}");
    // Where the cut is in a page that is in a wrong place.
    assert!(copied < exchanged * 4096, "{exchanged} {copied}");
    let (exchanged, _) = at_every_cut(&[1, 3, 2, 2], answer);
    assert!(exchanged > 100, "{exchanged}");
}

#[test]
fn data_of_two_commands_may_come_by_turns() {
    let answer = |stream: &mut Stream<'_>, commands: &[ScsiCommand]| {
        let [a, b] = commands else { panic!("{commands:?}") };
        for at in 0..3 {
            stream.data(a, at * 4096, 4096, false);
            stream.data(b, at * 4096, 4096, at == 2);
        }
        stream.response(a);
    };
    let (exchanged, _) = at_every_cut(&[3, 3], answer);
    assert!(exchanged > 100, "{exchanged}");
}

#[test]
fn data_in_pieces_of_any_length_and_what_comes_between() {
    let answer = |stream: &mut Stream<'_>, commands: &[ScsiCommand]| {
        let [a, b] = commands else { panic!("{commands:?}") };
        // Padded too.
        for (from, end) in [(0, 1), (1, 5000), (5000, 5003), (5003, 8192)] {
            stream.data(a, from, end - from, false);
            stream.nop();
        }
        stream.all(b);
        stream.nop();
        stream.response(a);
    };
    at_every_cut(&[2, 1], answer);
}

#[test]
fn anything_at_random_is_put_right() {
    for seed in 0..200 {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut below = move |n: usize| rng.next_u32() as usize % n;
        let mut script = ready(seed % 2 == 0);
        for round in 0..4 {
            let pages: Vec<usize> = (0..1 + below(9)).map(|_| 1 + below(4)).collect();
            let commands = reads(&mut script, 8, &pages);
            let mut stream = Stream::new(&mut script);
            let unit = [512, 4096, 1, 8192, 1 << 20][below(5)];
            let mut left: Vec<(ScsiCommand, usize)> =
                commands.into_iter().map(|c| (c, 0)).collect();
            let switches = below(3) > 0;
            while !left.is_empty() {
                let at = if switches { below(left.len()) } else { 0 };
                let (command, from) = &mut left[at];
                let len = extent(command).1;
                if *from == len {
                    stream.response(command);
                    left.remove(at);
                    continue;
                }
                let n = if unit == 1 { 1 + below(9000) } else { unit }.min(len - *from);
                let ends = *from + n == len && below(4) > 0;
                stream.data(command, *from, n, ends);
                *from += n;
                if ends {
                    left.remove(at);
                }
                if below(12) == 0 {
                    stream.nop();
                }
            }
            let bytes = stream.bytes;
            let most = [50, 1500, 9000, 1 << 20][below(4)];
            script.pour(&bytes, || 1 + below(most));
            check(&mut script, 8, &pages, &format!("seed {seed} round {round}"));
        }
    }
}

#[test]
fn what_a_target_lies_about_ends_the_connection_and_no_request() {
    type Lie = fn(&mut [u8]);
    // Of the second header: its length, its offset, its DataSN, its tag, its opcode, additional headers.
    let lies: [(Lie, &str); 7] = [
        (|bhs| bhs[5..8].copy_from_slice(&[0, 0x20, 0]), "more than was asked for"),
        (|bhs| bhs[5..8].copy_from_slice(&[0xff; 3]), "as much as can be said"),
        (|bhs| bhs[40..44].copy_from_slice(&4096u32.to_be_bytes()), "another offset"),
        (|bhs| bhs[39] ^= 1, "another DataSN"),
        (|bhs| bhs[18] ^= 1, "another tag"),
        (|bhs| bhs[0] = 0x2a, "another opcode"),
        (|bhs| bhs[4] = 1, "additional headers"),
    ];
    for (lie, what) in lies {
        for piece in [usize::MAX, 100] {
            let mut script = ready(false);
            let pages = [1; 8];
            let commands = reads(&mut script, 8, &pages);
            let mut stream = Stream::new(&mut script);
            commands.iter().for_each(|command| stream.all(command));
            let mut bytes = stream.bytes;
            let second = 48 + 4096;
            lie(&mut bytes[second..second + 48]);
            script.pour(&bytes, || piece);
            script.turn();
            assert_eq!(script.last_action, Some(Action::Abort), "{what}");
            assert_eq!(script.backend.stats().garbage, 1, "{what}");
            // The first has ended before. The others are asked for again, and no byte of theirs counts.
            let end = script.backend.poll_completion(script.now).expect(what);
            assert!(end.id.0 == 0 && end.outcome.is_ok());
            assert!(script.backend.poll_completion(script.now).is_none(), "{what}");
            script.pass(Span::from_secs(3));
            let again: Vec<ScsiCommand> = std::iter::from_fn(|| {
                script
                    .came
                    .iter()
                    .any(|c| matches!(c.0, RequestPdu::ScsiCommand(_)))
                    .then(|| script.command())
            })
            .collect();
            assert_eq!(again.len(), 7, "{what}");
            let mut stream = Stream::new(&mut script);
            again.iter().rev().for_each(|command| stream.all(command));
            let bytes = stream.bytes;
            script.pour(&bytes, || usize::MAX);
            for _ in 0..7 {
                let end = script.backend.poll_completion(script.now).expect(what);
                assert!(end.outcome.is_ok(), "{what}");
                let base = (8 + 2 * end.id.0 as usize) * PAGE_SIZE;
                assert!(
                    end.pages[0].bytes().iter().enumerate().all(|(at, b)| *b == content(base + at))
                );
            }
        }
    }
}

#[test]
fn data_that_is_missing_is_not_taken_from_what_has_landed_there() {
    // The page of the second request was shown, and filled with the answer to the third.
    let mut script = ready(false);
    let commands = reads(&mut script, 8, &[1, 1, 1]);
    let mut stream = Stream::new(&mut script);
    stream.all(&commands[0]);
    stream.all(&commands[2]);
    let bytes = stream.bytes;
    script.pour(&bytes, || usize::MAX);
    script.respond(&commands[1], 0, None, (false, true, 4096));
    let ends = [(); 3].map(|()| script.backend.poll_completion(script.now).unwrap());
    for end in ends {
        match end.id.0 {
            1 => {
                let short = StoreError::ShortRead { got: 0, wanted: 4096 };
                assert_eq!(end.outcome, Err(short));
            }
            id => {
                let base = (8 + 2 * id as usize) * PAGE_SIZE;
                assert!(end.outcome.is_ok());
                assert!(
                    end.pages[0].bytes().iter().enumerate().all(|(at, b)| *b == content(base + at))
                );
            }
        }
    }
}

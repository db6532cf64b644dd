//! Frames between engines and their node: every message that is accepted says the same when it is
//! written and read again.
//!
//! Knows nothing of sockets or sessions.

use std::fmt::Debug;
use std::time::Duration;

use flexkv_block::{BlockKey, NamespaceId};
use flexkv_engine::wire::{
    HEADER_BYTES, Header, Hello, MAX_BODY_BYTES, RefusalCode, Refused, Reply, Request, VERSION,
    Welcome, WireError,
};
use flexkv_ports::{CacheError, LoadLimits, PrefixHit, Removed, Ticket};

use crate::Target;

pub(crate) const TARGET: Target = Target {
    name: "local_protocol",
    run,
    seeds,
};

fn run(data: &[u8]) {
    again(data, Hello::decode, |hello, _, out| hello.encode(out));
    again(data, Welcome::decode, |welcome, _, out| welcome.encode(out));
    again(
        data,
        |_, body| Refused::decode(body),
        |refused, _, out| refused.encode(out),
    );
    again(data, Request::decode, |request, id, out| {
        request.encode(id, out)
    });
    again(data, Reply::decode, |reply, id, out| reply.encode(id, out));
}

/// The header and body of the first frame in `data`.
fn frame(data: &[u8]) -> Option<(Header, &[u8])> {
    let (header, body) = data.split_first_chunk::<HEADER_BYTES>()?;
    let header = Header::decode(header, MAX_BODY_BYTES).ok()?;
    Some((header, body.get(..header.body)?))
}

fn again<T: PartialEq + Debug>(
    data: &[u8],
    decode: impl Fn(u16, &[u8]) -> Result<T, WireError>,
    encode: impl Fn(&T, u32, &mut Vec<u8>),
) {
    let Some((header, body)) = frame(data) else {
        return;
    };
    let Ok(message) = decode(header.kind, body) else {
        return;
    };
    let mut out = Vec::new();
    encode(&message, header.id, &mut out);
    let read = frame(&out).map(|(header, body)| decode(header.kind, body));
    assert_eq!(read, Some(Ok(message)));
}

fn seeds() -> Vec<Vec<u8>> {
    let keys = || vec![BlockKey::from_u128(1), BlockKey::from_u128(2)].into();
    let ticket = Ticket(9);
    let limits = LoadLimits {
        deadline: Duration::from_millis(20),
        recompute: Some(Duration::from_micros(90)),
    };
    let requests = [
        Request::Match { keys: keys() },
        Request::Load {
            ticket,
            blocks: 2,
            limits,
        },
        Request::Poll { ticket },
        Request::Wait { ticket },
        Request::Store {
            keys: keys(),
            first: 1,
        },
        Request::Release { ticket },
        Request::Watch,
    ];
    let hit = PrefixHit {
        ticket,
        blocks: 2,
        local: 1,
    };
    let replies = [
        Reply::Matched(hit),
        Reply::Done,
        Reply::Pending,
        Reply::Loaded {
            local: 1,
            remote: 0,
            blocks: Vec::new(),
        },
        Reply::Granted {
            ticket,
            slots: vec![Some(4096), None],
        },
        Reply::Removed(Removed {
            keys: vec![BlockKey::from_u128(1)],
            lost: 2,
        }),
        Reply::Failed(CacheError::UnknownTicket { ticket }),
    ];
    let mut seeds = vec![Vec::new(); 3];
    Hello {
        version: VERSION,
        pid: 1,
    }
    .encode(&mut seeds[0]);
    let refused = Refused {
        code: RefusalCode::Busy,
        text: "full".to_owned(),
    };
    refused.encode(&mut seeds[1]);
    welcome().encode(&mut seeds[2]);
    seeds.extend(
        requests
            .iter()
            .map(|request| encoded(|out| request.encode(3, out))),
    );
    seeds.extend(
        replies
            .iter()
            .map(|reply| encoded(|out| reply.encode(3, out))),
    );
    seeds
}

fn welcome() -> Welcome {
    Welcome {
        version: VERSION,
        pid: 2,
        namespace: NamespaceId::from_u128(77),
        block_bytes: 4096,
        arena_bytes: 1 << 20,
        max_keys: 8192,
    }
}

fn encoded(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out);
    out
}

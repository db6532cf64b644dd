//! Bytes of a node record, see the table in the parent module. Knows nothing of what they mean.

use super::*;

const MAGIC: [u8; 4] = *b"FKVN";
const FLAG_ROTATED: u16 = 1;
/// More than any record within its limits has.
const MAX_RECORD_BYTES: usize = 8192;

pub(super) fn encode(record: &NodeRecord) -> Bytes {
    let info = &record.info;
    let mut out = Vec::with_capacity(256);
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    let flags = if record.rotated { FLAG_ROTATED } else { 0 };
    out.extend_from_slice(&flags.to_le_bytes());
    out.extend_from_slice(&info.node.incarnation.to_le_bytes());
    out.extend_from_slice(&info.namespace.as_u128().to_le_bytes());
    out.extend_from_slice(&info.block_bytes.to_le_bytes());
    out.extend_from_slice(&record.epoch.to_le_bytes());
    out.extend_from_slice(&record.log_start.to_le_bytes());
    text(&mut out, info.node.name.as_str());
    text(&mut out, &info.locality);
    out.extend_from_slice(&(info.endpoints.len() as u16).to_le_bytes());
    for endpoint in &info.endpoints {
        text(&mut out, endpoint);
    }
    let sum = Checksum::of(&out);
    out.extend_from_slice(&sum.0.to_le_bytes());
    out.into()
}

/// Every text's limit is below 2^16.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

pub(super) fn decode(bytes: &[u8]) -> Result<NodeRecord, RecordError> {
    limit("length in bytes", bytes.len(), MAX_RECORD_BYTES)?;
    let mut from = Reader { rest: bytes };
    let magic = from.array("its magic")?;
    if magic != MAGIC {
        return Err(RecordError::Magic { found: magic });
    }
    // Before the checksum: another version may have another one.
    let version = u16::from_le_bytes(from.array("its version")?);
    if version != PROTOCOL_VERSION {
        return Err(RecordError::Version { found: version });
    }
    from.check(bytes)?;
    let flags = u16::from_le_bytes(from.array("its flags")?);
    if flags & !FLAG_ROTATED != 0 {
        return Err(RecordError::Flags { found: flags });
    }
    let incarnation = u64::from_le_bytes(from.array("the incarnation")?);
    let namespace = u128::from_le_bytes(from.array("the namespace")?);
    let block_bytes = u32::from_le_bytes(from.array("the block's size")?);
    let epoch = u32::from_le_bytes(from.array("the epoch")?);
    let log_start = u64::from_le_bytes(from.array("the log's start")?);
    if log_start == 0 {
        return Err(RecordError::LogStart);
    }
    let name = from.text("the name")?.parse()?;
    let locality = from.text("the locality")?.to_owned();
    let count = usize::from(u16::from_le_bytes(from.array("the number of endpoints")?));
    limit("number of endpoints", count, NodeInfo::MAX_ENDPOINTS)?;
    let endpoints = (0..count)
        .map(|_| from.text("an endpoint").map(str::to_owned))
        .collect::<Result<_, _>>()?;
    if !from.rest.is_empty() {
        return Err(RecordError::Trailing {
            bytes: from.rest.len(),
        });
    }
    let node = NodeId { name, incarnation };
    let namespace = NamespaceId::from_u128(namespace);
    Ok(NodeRecord {
        info: NodeInfo::new(node, namespace, block_bytes, locality, endpoints)?,
        epoch,
        log_start,
        rotated: flags & FLAG_ROTATED != 0,
    })
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], RecordError> {
        let (head, rest) = self
            .rest
            .split_first_chunk()
            .ok_or(RecordError::Truncated { what })?;
        self.rest = rest;
        Ok(*head)
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, RecordError> {
        let len = usize::from(u16::from_le_bytes(self.array(what)?));
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(RecordError::Truncated { what })?;
        self.rest = rest;
        std::str::from_utf8(head).map_err(|_| RecordError::Text { what })
    }

    /// Takes the checksum off the end and compares it with the bytes before.
    fn check(&mut self, all: &[u8]) -> Result<(), RecordError> {
        let what = "its checksum";
        let (rest, sum) = self
            .rest
            .split_last_chunk()
            .ok_or(RecordError::Truncated { what })?;
        self.rest = rest;
        let found = u64::from_le_bytes(*sum);
        let computed = Checksum::of(&all[..all.len() - sum.len()]).0;
        if found != computed {
            return Err(RecordError::Damaged { found, computed });
        }
        Ok(())
    }
}

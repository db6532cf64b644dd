//! Frames come out as they went in, however the stream cuts them, and memory follows the bytes.

use flexkv_block::BlockKey;
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::wire::Request;

fn frame(id: u32, keys: u128) -> Vec<u8> {
    let keys: Vec<_> = (0..keys).map(BlockKey::from_u128).collect();
    let mut frame = Vec::new();
    Request::Match { keys: keys.into() }.encode(id, &mut frame);
    frame
}

#[tokio::test]
async fn frames_survive_any_cut() {
    let sizes = [0, 1, 5000, 3, 60_000, 0, 2];
    let bytes: Vec<u8> = sizes
        .iter()
        .zip(1..)
        .flat_map(|(keys, id)| frame(id, *keys))
        .collect();
    for piece in [1usize, 7, 4096, 1 << 20] {
        // One byte at a time is slow over all; the small frames come first.
        let bytes = bytes[..if piece == 1 { 3000 } else { bytes.len() }].to_vec();
        let whole = piece != 1;
        let (mut write, mut read) = tokio::io::duplex(piece);
        let writer = tokio::spawn(async move { write.write_all(&bytes).await });
        let mut frames = Frames::new(2 << 20);
        let mut seen = 0;
        let end = loop {
            match frames.next(&mut read).await {
                Ok(Some((header, body))) => {
                    let expected = frame(header.id, sizes[seen]);
                    assert_eq!(header.id as usize, seen + 1);
                    assert!(
                        body == &expected[HEADER_BYTES..],
                        "frame {seen}, piece {piece}"
                    );
                    seen += 1;
                }
                Ok(None) => break true,
                Err(StreamError::Cut) => break false,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(
            (end, seen),
            if whole {
                (true, sizes.len())
            } else {
                (false, 2)
            }
        );
        writer.await.expect("no panic").expect("written");
    }
}

#[tokio::test]
async fn an_announced_length_takes_no_memory() {
    let mut head = frame(1, 0);
    head[..4].copy_from_slice(&(30u32 << 20).to_le_bytes());
    let mut frames = Frames::new(32 << 20);
    let cut = frames.next(&mut &head[..]).await.map(|_| ());
    assert!(matches!(cut, Err(StreamError::Cut)));
    assert_eq!(frames.buffer.len(), IDLE_BYTES);
}

#[tokio::test]
async fn a_large_frame_does_not_keep_its_memory() {
    let bytes = [frame(1, 200_000), frame(2, 0)].concat();
    let (mut write, mut read) = tokio::io::duplex(1 << 20);
    let writer = tokio::spawn(async move {
        write.write_all(&bytes).await.expect("written");
        write
    });
    let mut frames = Frames::new(8 << 20);
    for id in [1, 2] {
        let (header, _) = frames.next(&mut read).await.expect("good").expect("there");
        assert_eq!(header.id, id);
    }
    drop(writer.await.expect("no panic"));
    assert!(frames.next(&mut read).await.expect("clean end").is_none());
    assert_eq!(frames.buffer.len(), IDLE_BYTES);
}

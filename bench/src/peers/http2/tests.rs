use super::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What etcd 3.4 sends first, and its answer to a put on a stream: headers, the message in two frames, trailers.
const SETTINGS_OF_ETCD: &[u8] = &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0];

fn answer(stream: u8, message: &[u8]) -> Vec<u8> {
    let mut answer = BytesMut::new();
    frame(&mut answer, kind::HEADERS, END_HEADERS, u32::from(stream), 2);
    answer.put_slice(&[0x88, 0x5f]);
    for piece in [&message[..5], &message[5..]] {
        frame(&mut answer, kind::DATA, 0, u32::from(stream), piece.len());
        answer.put_slice(piece);
    }
    frame(&mut answer, kind::HEADERS, END_HEADERS | END_OR_ACK, u32::from(stream), 1);
    answer.put_u8(0x40);
    answer.to_vec()
}

/// A `PutResponse` with the header cluster 1, member 300, revision 5, term 2.
const RESPONSE: &[u8] = &[0, 0, 0, 0, 11, 0x0a, 9, 0x08, 1, 0x10, 0xac, 2, 0x18, 5, 0x20, 2];

fn receive(connection: &mut Connection, bytes: &[u8]) -> anyhow::Result<(Vec<Answer>, BytesMut)> {
    let (mut answers, mut output) = (Vec::new(), BytesMut::new());
    connection.receive(&mut BytesMut::from(bytes), &mut output, &mut answers)?;
    Ok((answers, output))
}

#[test]
fn a_put_is_these_bytes_and_the_next_is_shorter() {
    let mut output = BytesMut::new();
    let mut connection = Connection::open("127.0.0.1:2379", &mut output);
    assert_eq!(
        hex(&output.split()[PREFACE.len()..]),
        "000006040000000000000200000000".to_owned() + "000004080000000000" + "7fff0000"
    );
    connection.put(7, b"hello", &mut output);
    let headers = [
        "83".to_owned(),
        "86".to_owned(),
        format!("44 14 {}", hex(b"/etcdserverpb.KV/Put")),
        format!("41 0e {}", hex(b"127.0.0.1:2379")),
        format!("5f 10 {}", hex(b"application/grpc")),
        format!("40 02 {} 08 {}", hex(b"te"), hex(b"trailers")),
    ];
    let message = format!("00 00000016 0a 0d {} 12 05 {}", hex(b"load/00000007"), hex(b"hello"));
    let expected = format!("000047 01 04 00000001 {} 00001b 00 01 00000001 {message}", headers.join(""));
    assert_eq!(hex(&output.split()), expected.replace(' ', ""));
    connection.put(7, b"hello", &mut output);
    let expected = format!("000006 01 04 00000003 83 86 c1 c0 bf be 00001b 00 01 00000003 {message}");
    assert_eq!(hex(&output), expected.replace(' ', ""));
}

#[test]
fn answers_come_back_however_they_are_cut() -> anyhow::Result<()> {
    let mut output = BytesMut::new();
    let mut connection = Connection::open("x", &mut output);
    connection.put(4, b"a", &mut output);
    connection.put(5, b"b", &mut output);
    let all = [SETTINGS_OF_ETCD, &answer(3, RESPONSE), &answer(1, RESPONSE)].concat();
    let (mut input, mut answers) = (BytesMut::new(), Vec::new());
    output.clear();
    for byte in all {
        input.put_u8(byte);
        connection.receive(&mut input, &mut output, &mut answers)?;
    }
    assert!(connection.is_ready() && input.is_empty() && connection.calls.is_empty());
    assert_eq!(answers, [Answer { worker: 5, result: Ok(()) }, Answer { worker: 4, result: Ok(()) }]);
    assert_eq!(hex(&output), "000000040100000000", "the settings are acknowledged");
    Ok(())
}

#[test]
fn without_a_revision_a_put_has_failed() -> anyhow::Result<()> {
    let trailers_only = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x40];
    let reset = [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7];
    let without_header = answer(1, &[0, 0, 0, 0, 2, 0x12, 0]);
    let cut_short = answer(1, &RESPONSE[..12]);
    for bytes in [&trailers_only[..], &reset, &without_header, &cut_short] {
        let mut output = BytesMut::new();
        let mut connection = Connection::open("x", &mut output);
        connection.put(4, b"a", &mut output);
        let (answers, _) = receive(&mut connection, bytes)?;
        let [Answer { worker: 4, result: Err(error) }] = &answers[..] else { panic!("{answers:?} to {bytes:?}") };
        assert!(error.starts_with("etcd refused: an answer of "), "{error}");
    }
    Ok(())
}

/// The lengths and flags of the DATA frames.
fn data_frames(mut output: BytesMut) -> Vec<(usize, u8)> {
    let mut found = Vec::new();
    while !output.is_empty() {
        let (length, kind, flags) = (output.get_uint(3) as usize, output.get_u8(), output.get_u8());
        output.advance(4 + length);
        if kind == kind::DATA {
            found.push((length, flags));
        }
    }
    found
}

#[test]
fn no_more_is_sent_than_the_server_takes() -> anyhow::Result<()> {
    let mut output = BytesMut::new();
    let mut connection = Connection::open("x", &mut output);
    output.clear();
    let value = vec![1; 40_000];
    // With 24 bytes around it: a byte and a length of 4, tag and length of a key of 13, tag and length (3) of the value.
    let message = 40_000 + 5 + 2 + 13 + 1 + 3;
    connection.put(0, &value, &mut output);
    connection.put(1, &value, &mut output);
    let rest = 65_535 - message;
    let first = [(16_384, 0), (16_384, 0), (message - 32_768, END_OR_ACK)];
    assert_eq!(data_frames(output.split()), [&first[..], &[(16_384, 0), (rest - 16_384, 0)]].concat());
    // A stream's own window does not count, the connection's does.
    let (_, output) = receive(&mut connection, &[0, 0, 4, 8, 0, 0, 0, 0, 1, 0, 1, 0, 0])?;
    assert_eq!(data_frames(output), []);
    let (_, output) = receive(&mut connection, &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 10])?;
    assert_eq!(data_frames(output), [(10, 0)]);
    let (_, output) = receive(&mut connection, &[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0])?;
    assert_eq!(data_frames(output), [(message - rest - 10, END_OR_ACK)]);
    assert_eq!(connection.window, 65_536 - (message - rest - 10));
    Ok(())
}

#[test]
fn pings_are_answered_and_an_end_is_an_error() -> anyhow::Result<()> {
    let mut connection = Connection::open("x", &mut BytesMut::new());
    let (_, output) = receive(&mut connection, &[0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8])?;
    assert_eq!(hex(&output), "000008060100000000".to_owned() + "0102030405060708");
    assert!(receive(&mut connection, &[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_err());
    assert!(receive(&mut connection, &answer(1, RESPONSE)).is_err(), "nothing was asked");
    Ok(())
}

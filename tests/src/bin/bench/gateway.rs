//! etcd's own JSON gateway over one connection that stays open, so that a put costs no process and no handshake.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddrV4, TcpStream},
    time::Duration,
};

use serde_json::{Value, json};
use tenon_tests::{BedError, Cluster, Outcome, netns, underlay::etcd_address};

/// Puts of one transaction: so few that the answer comes whole, with its length at its head.
const PUTS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to the gateway.
#[derive(Debug)]
pub(crate) struct Gateway {
    stream: BufReader<TcpStream>,
    host: SocketAddrV4,
}

impl Gateway {
    pub(crate) fn connect(cluster: &Cluster) -> Result<Self, BedError> {
        let host = SocketAddrV4::new(etcd_address(1), 2379);
        let connect = || {
            let stream = TcpStream::connect(host)?;
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            Ok(stream)
        };
        let stream = netns::inside(&cluster.underlay.netns().path(), connect)?
            .map_err(|e: std::io::Error| BedError::system("connect to etcd's gateway", e))?;
        Ok(Self { stream: BufReader::new(stream), host })
    }

    /// Puts a value and waits for the answer.
    pub(crate) fn put(&mut self, key: &str, value: &str) -> Outcome {
        self.post("/v3/kv/put", &put(key, value)).map(drop)
    }

    /// Puts many values in a few transactions.
    pub(crate) fn put_all(&mut self, records: &[(String, String)]) -> Outcome {
        for records in records.chunks(PUTS) {
            let puts: Vec<Value> =
                records.iter().map(|(key, value)| json!({ "requestPut": put(key, value) })).collect();
            let answer = self.post("/v3/kv/txn", &json!({ "success": puts }))?;
            if !answer.contains("\"succeeded\":true") {
                return Err(BedError::answer("put records", answer));
            }
        }
        Ok(())
    }

    fn post(&mut self, path: &str, body: &Value) -> Result<String, BedError> {
        self.exchange(path, &body.to_string())
            .map_err(|e| BedError::system(format!("POST {path} to etcd's gateway"), e))?
            .map_err(|answer| BedError::answer(format!("POST {path} to etcd's gateway"), answer))
    }

    /// One HTTP/1.1 request; the inner error is an answer other than 200.
    fn exchange(&mut self, path: &str, body: &str) -> std::io::Result<Result<String, String>> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {}\r\n\r\n{body}",
            self.host,
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes())?;
        let mut status = String::new();
        self.stream.read_line(&mut status)?;
        let mut length = None;
        loop {
            let mut line = String::new();
            self.stream.read_line(&mut line)?;
            if line.trim().is_empty() {
                break;
            }
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
        }
        let Some(length) = length else { return Ok(Err(format!("{status}without a length"))) };
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        Ok(if status.contains(" 200 ") { Ok(answer) } else { Err(format!("{status}{answer}")) })
    }
}

/// A `PutRequest` as the gateway takes it: bytes are in base64.
fn put(key: &str, value: &str) -> Value {
    json!({ "key": base64(key.as_bytes()), "value": base64(value.as_bytes()) })
}

/// RFC 4648 section 4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: [char; 64] = {
        let mut alphabet = ['+'; 64];
        let mut index = 0;
        while index < 62 {
            let digit = index as u8;
            alphabet[index] = match digit {
                0..26 => b'A' + digit,
                26..52 => b'a' + digit - 26,
                _ => b'0' + digit - 52,
            } as char;
            index += 1;
        }
        alphabet[63] = '/';
        alphabet
    };
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 0x3f;
            text.push(if digit <= group.len() { ALPHABET[value as usize] } else { '=' });
        }
    }
    text
}

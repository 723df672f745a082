//! As much of an HTTP/1.1 client as reading an agent's endpoints takes.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

const TIMEOUT: Duration = Duration::from_secs(10);

/// An answer; `/readyz` says as much with its status as with its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Such as 200.
    pub status: u16,
    /// The whole body.
    pub body: String,
}

/// Requests `path` from `address` (`127.0.0.1:9184`).
pub(crate) fn get(address: &str, path: &str) -> Result<Response> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let exchange = || {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok::<_, std::io::Error>(answer)
    };
    let answer = exchange().with_context(|| format!("cannot get http://{address}{path}"))?;
    parse(&answer).with_context(|| format!("http://{address}{path} answers {answer:?}"))
}

fn parse(answer: &str) -> Result<Response> {
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without an end of its head")?;
    let mut lines = head.lines();
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no status")?;
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    if headers.iter().any(|(name, _)| name == "transfer-encoding") {
        bail!("a transfer encoding, which this client does not know");
    }
    if let Some((_, length)) = headers.iter().find(|(name, _)| name == "content-length") {
        let length: usize = length.parse().context("a length that is no number")?;
        if body.len() != length {
            bail!("{} bytes of body, announced were {length}", body.len());
        }
    }
    Ok(Response { status, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::{io::BufRead as _, io::BufReader, net::TcpListener, thread};

    use super::*;

    #[test]
    fn a_server_is_asked_and_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let request: Vec<String> = BufReader::new(&stream)
                .lines()
                .map(Result::unwrap)
                .take_while(|line| !line.is_empty())
                .collect();
            (&stream).write_all(b"HTTP/1.1 503 Not Ready\r\nContent-Length: 3\r\n\r\nno\n").unwrap();
            request
        });
        let response = get(&address, "/readyz").unwrap();
        assert_eq!(response, Response { status: 503, body: "no\n".to_owned() });
        assert_eq!(server.join().unwrap()[0], "GET /readyz HTTP/1.1");
    }

    #[test]
    fn a_short_body_is_an_error() {
        assert!(parse("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nshort").is_err());
        assert!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").is_err());
        assert_eq!(parse("HTTP/1.0 200 OK\r\n\r\nuntil the end").unwrap().body, "until the end");
    }
}

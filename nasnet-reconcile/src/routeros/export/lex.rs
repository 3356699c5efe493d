//! Reads words, quoted texts and bracketed expressions out of the bytes of an export.
//!
//! Every function ends at or before the end of the input and never goes over the same bytes more often than a fixed
//! number of times, whatever the input holds.

/// A place in the input that cannot be read on, and where reading can go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LexError {
    /// The offset the message is about.
    pub(super) at: usize,
    /// What is wrong.
    pub(super) message: String,
}

impl LexError {
    pub(super) fn new(at: usize, message: impl Into<String>) -> Self {
        Self { at, message: message.into() }
    }
}

/// A text in quotes.
#[derive(Debug)]
pub(super) struct Quoted {
    /// The decoded bytes.
    pub(super) bytes: Vec<u8>,
    /// The text holds `$name`, `$[..]` or `$(..)`, which only a device can fill in.
    pub(super) interpolated: bool,
}

/// Whether a bracketed expression may go over several lines without continuation marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lines {
    /// Anywhere, as in scripts.
    Many,
    /// Only inside `{ }`: a bracket that is never closed must not swallow the lines that follow.
    ManyInBraces,
}

/// A reading position in the input.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    pub(super) input: &'a [u8],
    pub(super) pos: usize,
    /// Bytes that may still be read again after a failed search for a closing bracket or quote further down.
    rescan_left: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(input: &'a [u8]) -> Self {
        Self { input, pos: 0, rescan_left: input.len().saturating_mul(4).saturating_add(1 << 16) }
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.input.get(self.pos).copied()
    }

    pub(super) fn byte(&self, at: usize) -> Option<u8> {
        self.input.get(at).copied()
    }

    pub(super) fn slice(&self, from: usize, to: usize) -> &'a [u8] {
        self.input.get(from..to).unwrap_or_default()
    }

    /// Returns the offset behind a line continuation that starts at `at`: a backslash, the end of the line and the
    /// blanks the next line begins with. Blanks between the backslash and the end of the line come from copying.
    pub(super) fn continuation(&self, at: usize) -> Option<usize> {
        if self.byte(at)? != b'\\' {
            return None;
        }
        let mut next = at + 1;
        while matches!(self.byte(next), Some(b' ' | b'\t' | b'\r')) {
            next += 1;
        }
        if self.byte(next)? != b'\n' {
            return None;
        }
        next += 1;
        while matches!(self.byte(next), Some(b' ' | b'\t')) {
            next += 1;
        }
        Some(next)
    }

    /// Skips blanks and line continuations.
    pub(super) fn skip_blanks(&mut self) {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\r') => self.pos += 1,
                Some(b'\\') => match self.continuation(self.pos) {
                    Some(next) => self.pos = next,
                    None => return,
                },
                _ => return,
            }
        }
    }

    /// Skips line continuations only.
    pub(super) fn skip_continuations(&mut self) {
        while let Some(next) = self.continuation(self.pos) {
            self.pos = next;
        }
    }

    /// Returns whether the statement ends here: at the end of the line, of the input or at a semicolon.
    pub(super) fn at_statement_end(&self) -> bool {
        matches!(self.peek(), None | Some(b'\n' | b';'))
    }

    /// Returns whether a word ends at `at`.
    pub(super) fn delimits(&self, at: usize) -> bool {
        match self.byte(at) {
            None | Some(b' ' | b'\t' | b'\r' | b'\n' | b';') => true,
            Some(b'\\') => self.continuation(at).is_some(),
            Some(_) => false,
        }
    }

    /// Returns the offset of the end of the line that holds `at`.
    pub(super) fn line_end(&self, at: usize) -> usize {
        let rest = self.input.get(at..).unwrap_or_default();
        rest.iter().position(|b| *b == b'\n').map_or(self.input.len(), |length| at + length)
    }

    /// Returns the offset of the end of the statement line that holds `at`, with the lines that continue it.
    pub(super) fn logical_line_end(&self, at: usize) -> usize {
        let mut end = self.line_end(at);
        while end < self.input.len() {
            let line = self.slice(at, end);
            let trimmed = line.iter().rposition(|b| !matches!(b, b' ' | b'\t' | b'\r'));
            let backslashes = trimmed.map_or(0, |last| line[..=last].iter().rev().take_while(|b| **b == b'\\').count());
            // An even number of backslashes is escaped backslashes.
            if backslashes % 2 == 0 {
                return end;
            }
            end = self.line_end(end + 1);
        }
        self.input.len()
    }

    /// Reads the escape sequence at the backslash `at`: the byte it stands for and the offset behind it.
    fn escape(&self, at: usize) -> Result<(u8, usize), LexError> {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        let byte = match self.byte(at + 1) {
            Some(b @ (b'"' | b'\\' | b'$' | b'?')) => b,
            Some(b'_') => b' ',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'a') => 0x07,
            Some(b'b') => 0x08,
            Some(b'f') => 0x0C,
            Some(b'v') => 0x0B,
            Some(high @ (b'0'..=b'9' | b'A'..=b'F')) => {
                let low = self.byte(at + 2).and_then(hex);
                return match (hex(high), low) {
                    (Some(high), Some(low)) => Ok((high * 16 + low, at + 3)),
                    _ => Err(LexError::new(at, "an escape of a byte needs two hexadecimal digits")),
                };
            }
            Some(b) if b.is_ascii_graphic() => {
                return Err(LexError::new(at, format!("unknown escape `\\{}`", char::from(b))));
            }
            _ => return Err(LexError::new(at, "a backslash stands before nothing it could escape")),
        };
        Ok((byte, at + 2))
    }

    /// Skips a backslash and the byte behind it.
    pub(super) fn skip_escaped(&mut self) -> Result<(), LexError> {
        let behind = self.slice(self.pos + 1, self.input.len());
        if behind.iter().all(|b| matches!(b, b' ' | b'\t' | b'\r')) {
            return Err(LexError::new(self.pos, "a backslash stands before nothing it could escape"));
        }
        self.pos += 2;
        Ok(())
    }

    /// Reads a word without quotes up to the next delimiter.
    pub(super) fn word(&mut self) -> Result<Vec<u8>, LexError> {
        let mut bytes = Vec::new();
        while !self.delimits(self.pos) || self.byte(self.pos) == Some(b'\\') {
            match self.peek() {
                Some(b'\\') => {
                    if let Some(next) = self.continuation(self.pos) {
                        self.pos = next;
                    } else {
                        let (byte, next) = self.escape(self.pos)?;
                        bytes.push(byte);
                        self.pos = next;
                    }
                }
                Some(b'"') => return Err(LexError::new(self.pos, "a quote in the middle of a word")),
                Some(b) => {
                    bytes.push(b);
                    self.pos += 1;
                }
                None => break,
            }
        }
        Ok(bytes)
    }

    /// Reads the quoted text that starts here.
    ///
    /// Scripts written by hand go over several lines inside their quotes. A quote that was forgotten looks the same at
    /// first, so the quote found on a later line must look like a closing one: no `=` before it, a delimiter behind it.
    pub(super) fn quoted(&mut self) -> Result<Quoted, LexError> {
        let open = self.pos;
        let mut at = open + 1;
        let mut quoted = Quoted { bytes: Vec::new(), interpolated: false };
        let mut first_line_end = None;
        let unclosed = || LexError::new(open, "a quoted text is never closed");
        loop {
            match self.byte(at) {
                None => break,
                Some(b'"') => {
                    let closes = first_line_end.is_none()
                        || (self.byte(at - 1) != Some(b'=')
                            && (self.delimits(at + 1) || matches!(self.byte(at + 1), Some(b']' | b')' | b'}'))));
                    if !closes {
                        break;
                    }
                    self.pos = at + 1;
                    return Ok(quoted);
                }
                Some(b'\\') => {
                    if let Some(next) = self.continuation(at) {
                        at = next;
                    } else {
                        match self.escape(at) {
                            Ok((byte, next)) => {
                                quoted.bytes.push(byte);
                                at = next;
                            }
                            Err(error) if first_line_end.is_none() => return Err(error),
                            Err(_) => break,
                        }
                    }
                }
                Some(b) => {
                    if b == b'\n' && first_line_end.is_none() {
                        if self.rescan_left == 0 {
                            return Err(unclosed());
                        }
                        first_line_end = Some(at);
                    }
                    if b == b'$' {
                        let next = self.byte(at + 1);
                        quoted.interpolated |=
                            next.is_some_and(|b| b.is_ascii_alphanumeric() || matches!(b, b'(' | b'[' | b'{' | b'_'));
                    }
                    quoted.bytes.push(b);
                    at += 1;
                }
            }
        }
        self.rescan_left = self.rescan_left.saturating_sub(at - open);
        Err(unclosed())
    }

    /// Skips the bracketed expression that starts here, with everything nested in it.
    pub(super) fn skip_balanced(&mut self, lines: Lines) -> Result<(), LexError> {
        let open = self.pos;
        let limit = if self.rescan_left == 0 { self.logical_line_end(open) } else { self.input.len() };
        let result = self.balanced_end(lines, limit);
        match result {
            Ok(end) => {
                self.pos = end;
                Ok(())
            }
            Err((error, reached)) => {
                self.rescan_left = self.rescan_left.saturating_sub(reached - open);
                Err(error)
            }
        }
    }

    fn balanced_end(&self, lines: Lines, limit: usize) -> Result<usize, (LexError, usize)> {
        let open = self.pos;
        let mut closers: Vec<u8> = Vec::new();
        let mut braces = 0_usize;
        let mut at = open;
        let unclosed = |at| {
            let bracket = char::from(self.byte(open).unwrap_or(b'['));
            (LexError::new(open, format!("`{bracket}` is never closed")), at)
        };
        while at < limit {
            let Some(b) = self.byte(at) else { break };
            match b {
                b'"' => {
                    let lines = if braces > 0 { Lines::Many } else { lines };
                    at = self.string_end(at, limit, lines).ok_or_else(|| unclosed(limit))?;
                    continue;
                }
                b'\\' => {
                    at = self.continuation(at).unwrap_or(at + 2);
                    continue;
                }
                b'[' => closers.push(b']'),
                b'(' => closers.push(b')'),
                b'{' => {
                    closers.push(b'}');
                    braces += 1;
                }
                b']' | b')' | b'}' => {
                    if closers.pop() != Some(b) {
                        let message = format!("`{}` closes nothing that is open", char::from(b));
                        return Err((LexError::new(at, message), at));
                    }
                    braces -= usize::from(b == b'}');
                    if closers.is_empty() {
                        return Ok(at + 1);
                    }
                }
                b'\n' if lines == Lines::ManyInBraces && braces == 0 => return Err(unclosed(at)),
                b'\n' => {
                    // Text of a comment may hold brackets and quotes that mean nothing.
                    let mut next = at + 1;
                    while matches!(self.byte(next), Some(b' ' | b'\t' | b'\r')) {
                        next += 1;
                    }
                    at = if self.byte(next) == Some(b'#') { self.line_end(next) } else { next };
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
        Err(unclosed(at.min(self.input.len())))
    }

    /// Returns the offset behind the string that starts at `at`, or `None` when it is not closed before `limit`.
    pub(super) fn string_end(&self, at: usize, limit: usize, lines: Lines) -> Option<usize> {
        let mut at = at + 1;
        while at < limit {
            match self.byte(at)? {
                b'"' => return Some(at + 1),
                b'\\' => at = self.continuation(at).unwrap_or(at + 2),
                b'\n' if lines != Lines::Many => return None,
                _ => at += 1,
            }
        }
        None
    }

    /// Counts bytes that were read in vain, so that hostile input cannot make reading quadratic.
    pub(super) fn charge(&mut self, bytes: usize) {
        self.rescan_left = self.rescan_left.saturating_sub(bytes);
    }

    /// Returns how far a search over several lines may go from `at`.
    pub(super) fn search_limit(&self, at: usize) -> usize {
        if self.rescan_left == 0 { self.logical_line_end(at) } else { self.input.len() }
    }
}

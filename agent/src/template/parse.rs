//! From text to nodes.

use serde_json::Value;

use super::FUNCTIONS;

/// Blocks and groups in each other; nobody nests deeper by hand.
const MAX_DEPTH: usize = 50;

/// A piece of a template.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Node {
    Text(String),
    Emit(Pipe),
    Set(String, Pipe),
    If(Pipe, Vec<Node>, Vec<Node>),
    With(Pipe, Vec<Node>, Vec<Node>),
    Range(Vec<String>, Pipe, Vec<Node>, Vec<Node>),
}

/// Commands, each of which gets what the one before gave.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pipe(pub(super) Vec<Vec<Term>>);

/// A word of a command.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Term {
    Value(Value),
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Function(String),
    Group(Pipe, Vec<String>),
}

/// What stands between the braces, cut into words.
#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Open,
    Close,
    Bar,
    Comma,
    Assign,
}

/// Why a list of nodes ended.
#[derive(PartialEq)]
enum End {
    Template,
    Block,
    /// With the words behind it: `else if`.
    Else(Vec<Token>),
}

pub(super) fn parse(text: &str) -> Result<Vec<Node>, String> {
    let mut parser = Parser { rest: text };
    match parser.nodes(0)? {
        (nodes, End::Template) => Ok(nodes),
        (_, End::Block) => Err("template: {{end}} without a beginning".into()),
        (_, End::Else(_)) => Err("template: {{else}} without an if".into()),
    }
}

struct Parser<'a> {
    rest: &'a str,
}

impl Parser<'_> {
    fn nodes(&mut self, depth: usize) -> Result<(Vec<Node>, End), String> {
        if depth > MAX_DEPTH {
            return Err("template: nested too deep".into());
        }
        let mut nodes = Vec::new();
        loop {
            let Some((before, after)) = self.rest.split_once("{{") else {
                push_text(&mut nodes, self.rest);
                self.rest = "";
                return Ok((nodes, End::Template));
            };
            let (inside, after) = action(after)?;
            let (before, inside) = match inside.strip_prefix("- ") {
                Some(inside) => (before.trim_end(), inside),
                None => (before, inside),
            };
            push_text(&mut nodes, before);
            let (inside, after) = match inside.strip_suffix(" -") {
                Some(inside) => (inside, after.trim_start()),
                None => (inside, after),
            };
            self.rest = after;
            if inside.trim_start().starts_with("/*") {
                continue;
            }
            let tokens = tokens(inside)?;
            match tokens.first() {
                Some(Token::Word(word)) if word == "end" => return Ok((nodes, End::Block)),
                Some(Token::Word(word)) if word == "else" => {
                    return Ok((nodes, End::Else(tokens.get(1..).unwrap_or_default().to_vec())));
                }
                Some(Token::Word(word)) if matches!(word.as_str(), "if" | "with" | "range") => {
                    nodes.push(self.block(tokens, depth)?);
                }
                _ => nodes.push(statement(&tokens)?),
            }
        }
    }

    fn block(&mut self, tokens: Vec<Token>, depth: usize) -> Result<Node, String> {
        let Some((Token::Word(kind), tokens)) = tokens.split_first() else {
            return Err("template: an empty block".into());
        };
        let (names, tokens) = names(tokens);
        let pipe = pipe(tokens)?;
        let (then, end) = self.nodes(depth + 1)?;
        let other = match end {
            End::Block => Vec::new(),
            End::Template => return Err(format!("template: {{{{{kind}}}}} without an end")),
            // The chain's one `end` closes all of it.
            End::Else(more) if !more.is_empty() => vec![self.block(more, depth + 1)?],
            End::Else(_) => match self.nodes(depth + 1)? {
                (nodes, End::Block) => nodes,
                _ => return Err("template: {{else}} without an end".into()),
            },
        };
        match kind.as_str() {
            "if" => Ok(Node::If(pipe, then, other)),
            "with" => Ok(Node::With(pipe, then, other)),
            "range" => Ok(Node::Range(names, pipe, then, other)),
            _ => Err(format!("template: else {kind} is not supported")),
        }
    }
}

fn push_text(nodes: &mut Vec<Node>, text: &str) {
    if !text.is_empty() {
        nodes.push(Node::Text(text.into()));
    }
}

/// What stands in front of the closing braces, which may also stand in a string, and what follows them.
fn action(text: &str) -> Result<(&str, &str), String> {
    let mut quote: Option<char> = None;
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if matches!(c, '"' | '`') => quote = Some(c),
            None if text.get(at..).is_some_and(|rest| rest.starts_with("}}")) => {
                return Ok((
                    text.get(..at).unwrap_or_default(),
                    text.get(at + 2..).unwrap_or_default(),
                ));
            }
            None => {}
        }
    }
    Err("template: {{ without }}".into())
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut letters = text.char_indices().peekable();
    while let Some((at, c)) = letters.next() {
        match c {
            c if c.is_whitespace() => {}
            '(' => tokens.push(Token::Open),
            ')' => tokens.push(Token::Close),
            '|' => tokens.push(Token::Bar),
            ',' => tokens.push(Token::Comma),
            ':' if letters.next_if(|(_, c)| *c == '=').is_some() => tokens.push(Token::Assign),
            '"' | '`' => {
                let mut end = None;
                let mut escaped = false;
                for (at, inner) in letters.by_ref() {
                    match inner {
                        _ if escaped => escaped = false,
                        '\\' if c == '"' => escaped = true,
                        inner if inner == c => {
                            end = Some(at);
                            break;
                        }
                        _ => {}
                    }
                }
                let end = end.ok_or("template: a string without an end")?;
                let whole = text.get(at..=end).unwrap_or_default();
                let inner = text.get(at + 1..end).unwrap_or_default();
                tokens.push(Token::Text(match c {
                    '`' => inner.into(),
                    _ => serde_json::from_str(whole).map_err(|e| format!("template: {whole}: {e}"))?,
                }));
            }
            _ => {
                let mut end = at + c.len_utf8();
                while let Some((at, c)) = letters.next_if(|(_, c)| {
                    !c.is_whitespace() && !matches!(c, '(' | ')' | '|' | ',' | ':' | '"' | '`')
                }) {
                    end = at + c.len_utf8();
                }
                tokens.push(Token::Word(text.get(at..end).unwrap_or_default().into()));
            }
        }
    }
    Ok(tokens)
}

/// `$a, $b :=` in front of a range's pipe.
fn names(tokens: &[Token]) -> (Vec<String>, &[Token]) {
    let Some(at) = tokens.iter().position(|token| *token == Token::Assign) else {
        return (Vec::new(), tokens);
    };
    let (before, after) = tokens.split_at(at);
    let words = before.iter().filter_map(|token| match token {
        Token::Word(word) => Some(word.clone()),
        _ => None,
    });
    (words.collect(), after.get(1..).unwrap_or_default())
}

fn statement(tokens: &[Token]) -> Result<Node, String> {
    match tokens {
        [Token::Word(name), Token::Assign, rest @ ..] if name.starts_with('$') => {
            Ok(Node::Set(name.clone(), pipe(rest)?))
        }
        _ => Ok(Node::Emit(pipe(tokens)?)),
    }
}

fn pipe(tokens: &[Token]) -> Result<Pipe, String> {
    let mut tokens = tokens.iter();
    let pipe = commands(&mut tokens, 0)?;
    match tokens.next() {
        None => Ok(pipe),
        Some(_) => Err("template: a closing parenthesis too many".into()),
    }
}

/// Commands up to the end or a closing parenthesis, which is taken.
fn commands(tokens: &mut std::slice::Iter<'_, Token>, depth: usize) -> Result<Pipe, String> {
    if depth > MAX_DEPTH {
        return Err("template: nested too deep".into());
    }
    let mut pipe = vec![Vec::new()];
    let mut closed = depth == 0;
    while let Some(token) = tokens.next() {
        let new = match token {
            Token::Bar => {
                pipe.push(Vec::new());
                continue;
            }
            Token::Close if depth > 0 => {
                closed = true;
                break;
            }
            Token::Close | Token::Comma | Token::Assign => {
                return Err("template: something out of place".into());
            }
            Token::Text(text) => Term::Value(text.as_str().into()),
            Token::Open => {
                let inner = commands(tokens, depth + 1)?;
                let path = match tokens.as_slice().first() {
                    Some(Token::Word(word)) if word.starts_with('.') && word.len() > 1 => {
                        tokens.next();
                        path(word)?
                    }
                    _ => Vec::new(),
                };
                Term::Group(inner, path)
            }
            Token::Word(word) => term(word)?,
        };
        if let Some(command) = pipe.last_mut() {
            command.push(new);
        }
    }
    if !closed {
        return Err("template: a parenthesis without an end".into());
    }
    if pipe.iter().any(Vec::is_empty) {
        return Err("template: nothing where a value should be".into());
    }
    Ok(Pipe(pipe))
}

fn path(word: &str) -> Result<Vec<String>, String> {
    let names = word.trim_start_matches('.').split('.');
    let names: Vec<String> = names.map(str::to_owned).collect();
    let valid = |name: &String| !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    match names.iter().all(valid) && !word.starts_with("..") {
        true => Ok(names),
        false => Err(format!("template: {word:?} is not a field")),
    }
}

fn term(word: &str) -> Result<Term, String> {
    if word == "." {
        return Ok(Term::Field(Vec::new()));
    }
    if word.starts_with('.') {
        return Ok(Term::Field(path(word)?));
    }
    if word.starts_with('$') {
        return Ok(match word.split_once('.') {
            Some((name, fields)) => Term::Variable(name.into(), path(fields)?),
            None => Term::Variable(word.into(), Vec::new()),
        });
    }
    match word {
        "true" => return Ok(Term::Value(true.into())),
        "false" => return Ok(Term::Value(false.into())),
        "nil" => return Ok(Term::Value(Value::Null)),
        _ => {}
    }
    if let Ok(number) = word.parse::<i64>() {
        return Ok(Term::Value(number.into()));
    }
    match FUNCTIONS.contains(&word) {
        true => Ok(Term::Function(word.into())),
        false => Err(format!("template: function {word:?} is not defined")),
    }
}

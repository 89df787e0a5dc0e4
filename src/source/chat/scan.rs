//! What stands in the tags of a template, as its engine's own lexer reads it.

use std::collections::{BTreeSet, HashSet};

use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;

use Token::{Assign, BlockEnd, BlockStart, Dot, Ident, ParenClose, ParenOpen, Pipe};

/// The tokens up to the first that is none: what is no template is for the engine to refuse.
pub(super) fn tokens<'a>(template: &'a str, syntax: &SyntaxConfig) -> Vec<Token<'a>> {
    tokenize(template, false, syntax.clone()).map_while(Result::ok).map(|(token, _)| token).collect()
}

/// The name of the function that makes the only values which can be changed.
const NAMESPACE: &str = "namespace";

/// Whether namespaces stand only where nothing can hold them: `{% set NAME = namespace(…) %}`, and `NAME.attribute`. One that held itself
/// would be printed without end.
pub(super) fn holds_no_namespace(tokens: &[Token]) -> bool {
    let names = tokens.windows(4).filter_map(|four| match *four {
        [Ident("set"), Ident(name), Assign, Ident(NAMESPACE)] => Some(name),
        _ => None,
    });
    let names: HashSet<&str> = names.collect();
    variables(tokens).all(|(at, name)| match name {
        NAMESPACE => is_set(tokens, at),
        name if names.contains(name) => matches!(tokens.get(at + 1), Some(Dot | Assign)),
        _ => true,
    })
}

/// Whether `namespace` at this place is called, and what it makes is set and nothing else.
fn is_set(tokens: &[Token], at: usize) -> bool {
    let mut depth = 0;
    let closed = tokens[at + 1..].iter().position(|token| {
        depth += i32::from(matches!(token, ParenOpen)) - i32::from(matches!(token, ParenClose));
        depth == 0
    });
    // Where no parenthesis opens, the first token closes.
    let ends = closed.is_some_and(|closed| closed > 0 && matches!(tokens.get(at + closed + 2), Some(BlockEnd)));
    ends && matches!(tokens[..at], [.., BlockStart, Ident("set"), Ident(_), Assign])
}

/// The names of special tokens that a template reads although `known` has none such: they are empty then.
pub(super) fn unknown_tokens<'a>(tokens: &[Token<'a>], known: impl Fn(&str) -> bool) -> BTreeSet<&'a str> {
    let read = variables(tokens).filter(|(at, name)| name.ends_with("_token") && !matches!(tokens.get(at + 1), Some(Assign)));
    read.map(|(_, name)| name).filter(|name| !known(name)).collect()
}

/// Names with their places, but for those of attributes and of filters.
fn variables<'a>(tokens: &[Token<'a>]) -> impl Iterator<Item = (usize, &'a str)> {
    tokens.iter().enumerate().filter_map(|(at, token)| match *token {
        Ident(name) if !matches!(tokens[..at], [.., Dot | Pipe]) => Some((at, name)),
        _ => None,
    })
}

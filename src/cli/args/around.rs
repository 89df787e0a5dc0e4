//! The flags that say what stands around a prompt: of `invert`, `complete` and `score`.

use std::ffi::OsString;

use clap::Args;

use super::setting::{Flags, help};
use crate::files::utf8;
use crate::{Error, Result};

/// Template, chat, BoS.
#[derive(Args, Debug)]
pub struct Around {
    /// Text around the prompt, which stands in place of the braces
    #[arg(long, value_name = "TEXT with {}")]
    template: Option<OsString>,
    #[arg(long, help = help("chat"))]
    chat: bool,
    #[arg(long, value_name = "TEXT", help = help("system"))]
    system: Option<OsString>,
    #[arg(long, help = help("bos"))]
    bos: bool,
}

impl Around {
    pub(super) fn flags(&self, flags: &mut Flags) -> Result<()> {
        flags.switch("chat", self.chat).switch("bos", self.bos);
        flags.os_text("system", &self.system)
    }

    /// What stands before and behind the prompt, where there is a template.
    ///
    /// # Errors
    /// Its braces do not stand there exactly once.
    pub fn template(&self) -> Result<Option<(String, String)>> {
        let Some(template) = &self.template else { return Ok(None) };
        let text = utf8(template.as_encoded_bytes().to_vec(), "`--template`")?;
        let mut pieces = text.split("{}");
        match (pieces.next(), pieces.next(), pieces.next()) {
            (Some(before), Some(after), None) => Ok(Some((before.to_owned(), after.to_owned()))),
            (_, None, _) => Err(Error::input("`--template` has no {}; put it where the prompt is to stand")),
            _ => Err(Error::input("`--template` has {} more than once; the prompt can stand in one place only")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_has_one_place_for_the_prompt() {
        let split = |template: &str| Around { template: Some(template.into()), chat: false, system: None, bos: false }.template();
        let pair = |before: &str, after: &str| Some((before.to_owned(), after.to_owned()));
        assert_eq!(split("Q: {}\nA:").unwrap(), pair("Q: ", "\nA:"));
        assert_eq!(split("{}").unwrap(), pair("", ""));
        assert!(split("Q: \nA:").unwrap_err().to_string().contains("no {}"));
        assert!(split("{}{}").unwrap_err().to_string().contains("more than once"));
    }
}

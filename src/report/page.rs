//! The page: one file that asks nothing of a network.

use std::fmt::Write;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sha2::{Digest, Sha256};

use super::Report;
use super::markup::{escaped, label, short};
use super::palette::{Style, in_page};
use super::svg::{Figure, key};
use super::table::{Column, Field, Table};
use crate::ui::{abbreviated, visible};

const CSS: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
/// Characters of a text on the page; CSV has all.
const LONGEST_TEXT: usize = 600;
/// Characters of a title, and of a caption, both of which hold names that others gave.
const LONGEST_TITLE: usize = 120;
const LONGEST_CAPTION: usize = 2000;

impl Report<'_> {
    /// The whole page.
    pub(super) fn page(&self) -> String {
        let mut body = self.head();
        section(&mut body, "figures", "Figures", self.figures.iter().map(figure));
        section(&mut body, "tables", "Tables", self.comparisons.iter().map(|table| static_table(table, self.comparisons.len() <= 6)));
        section(&mut body, "prompts", "Prompts", self.prompts.iter().map(|table| static_table(table, false)));
        if !self.data.cells.is_empty() {
            section(&mut body, "cells", "Cells", [cells(&self.cells)].into_iter());
        }
        // The page's own script alone may run, and nothing may be fetched.
        let hash = BASE64_STANDARD.encode(Sha256::digest(SCRIPT));
        let policy =
            format!("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'");
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta http-equiv=\"Content-Security-Policy\" \
             content=\"{policy}\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>dlmi \
             report</title>\n<style>\n{}{CSS}</style>\n</head>\n<body>\n{body}<script>{SCRIPT}</script>\n</body>\n</html>\n",
            in_page()
        )
    }

    /// Title, counts, what to know, and the way to the parts.
    fn head(&self) -> String {
        let cells = &self.data.cells;
        let failed = cells.iter().filter(|cell| cell.outcome.is_err()).count();
        let exact = cells.iter().filter(|cell| cell.found().is_some_and(|found| found.exact)).count();
        let mut counts = Vec::new();
        if !cells.is_empty() {
            counts.push(format!("{} runs, {exact} exact, {failed} failed", cells.len()));
        }
        if !self.data.gradients.is_empty() {
            counts.push(format!("{} measurements of gradients", self.data.gradients.len()));
        }
        let groups: String = self.groups.iter().map(|group| format!("<li>{}</li>", short(&group.title(), LONGEST_TITLE))).collect();
        let groups = if groups.is_empty() { groups } else { format!("<ul class=\"groups\">{groups}</ul>") };
        let notes: String = self.notes().iter().map(|note| format!("<li>{note}</li>")).collect();
        let parts = [
            ("figures", self.figures.is_empty()),
            ("tables", self.comparisons.is_empty()),
            ("prompts", self.prompts.is_empty()),
            ("cells", cells.is_empty()),
        ];
        let links: String = parts.iter().filter(|(_, empty)| !empty).map(|(name, _)| format!("<a href=\"#{name}\">{name}</a>")).collect();
        format!(
            "<header><h1>dlmi report</h1><p>{}.</p>{groups}<nav>{links}</nav><ul class=\"notes\">{notes}</ul></header>\n",
            counts.join("; ")
        )
    }

    /// What a reader must know before the numbers.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.data.unmeasured > 0 {
            notes.push(format!("Runs of estimators that failed and could not be measured: {}.", self.data.unmeasured));
        }
        if self.groups.is_empty() {
            return notes;
        }
        if self.groups.iter().any(|group| group.floor.is_none()) {
            notes.push(
                "Some scores stand beside no floor: what a prompt gets there that nobody searched for is unknown. Cells labelled \
                 <code>floor</code> on the same targets would be drawn as one."
                    .to_owned(),
            );
        }
        let failed = self.data.cells.iter().filter(|cell| cell.outcome.is_err()).count();
        if failed > 0 {
            notes.push(format!("Failed: {failed}. They stay in, as 0 and not exact; <code>study run --retry</code> computes them again."));
        }
        if self.groups.iter().any(|group| group.all_series().any(|series| series.repeated > 0)) {
            notes.push(
                "Some methods drew nothing random here, as SODA before it first draws Z again: their runs of several seeds are the same, \
                 and count once."
                    .to_owned(),
            );
        }
        let few = self.groups.iter().flat_map(|group| group.by_k()).map(|(_, targets)| targets.len()).min().unwrap_or(0);
        if few < 10 {
            notes.push(format!(
                "Intervals are for targets that were not tried. With few targets they are too narrow: of three targets a 95 % interval \
                 holds the truth in about three of four studies. The fewest here at one k: {few}{}.",
                if few == 1 { ", where the interval is over seeds alone" } else { "" }
            ));
        }
        notes
    }
}

fn section(page: &mut String, id: &str, title: &str, parts: impl Iterator<Item = String>) {
    let parts: String = parts.collect();
    if !parts.is_empty() {
        _ = write!(page, "<section id=\"{id}\"><h2>{title}</h2>\n{parts}</section>\n");
    }
}

fn figure(figure: &Figure) -> String {
    let panels: String = figure.panels.iter().map(|panel| format!("<div class=\"panel\">{}</div>", panel.svg())).collect();
    format!(
        "<figure><h3>{}</h3>{}<div class=\"panels\">{panels}</div><figcaption>{} {}</figcaption></figure>\n",
        short(&figure.title, LONGEST_TITLE),
        legend(&figure.legend),
        figure.caption,
        links(&figure.name, &["svg", "png", "csv"])
    )
}

fn legend(entries: &[(Style, String)]) -> String {
    let entry = |(style, text): &(Style, String)| {
        format!("<li><svg viewBox=\"0 -7 28 14\" width=\"28\" height=\"14\" aria-hidden=\"true\">{}</svg>{}</li>", key(*style), label(text))
    };
    let entries: String = entries.iter().map(entry).collect();
    if entries.is_empty() { entries } else { format!("<ul class=\"legend\">{entries}</ul>") }
}

/// The same as files, which lie beside the page. Names are made of letters, digits and hyphens.
fn links(name: &str, endings: &[&str]) -> String {
    let link = |ending: &&str| format!("<a href=\"{name}.{ending}\">{}</a>", ending.to_uppercase());
    format!("<span class=\"files\">{}</span>", endings.iter().map(link).collect::<String>())
}

fn static_table(table: &Table, open: bool) -> String {
    let open = if open && table.rows.len() < 20 { " open" } else { "" };
    format!(
        "<details{open}><summary>{}</summary><p class=\"caption\">{} {}</p>{}</details>\n",
        short(&table.title, LONGEST_TITLE),
        short(&table.caption, LONGEST_CAPTION),
        links(&table.name, &["csv", "md"]),
        grid(table, false)
    )
}

fn cells(table: &Table) -> String {
    format!(
        "<p class=\"caption\">{} {}</p><div class=\"controls\" hidden><input type=\"search\" placeholder=\"Search all columns\" \
         aria-label=\"Search\"></div><p class=\"shown\" aria-live=\"polite\"></p>{}",
        short(&table.caption, LONGEST_CAPTION),
        links(&table.name, &["csv", "md"]),
        grid(table, true)
    )
}

fn grid(table: &Table, sortable: bool) -> String {
    let number = |column: usize| table.rows.iter().all(|row| row[column].is_number());
    let numbers: Vec<bool> = (0..table.columns.len()).map(number).collect();
    let head = |(column, number): (&Column, &bool)| {
        let (class, choice) = (if *number { " class=\"n\"" } else { "" }, if column.choice { " data-choice" } else { "" });
        let name = escaped(&column.name);
        let name = if sortable { format!("<button type=\"button\">{name}</button>") } else { name };
        format!("<th scope=\"col\"{class}{choice}>{name}</th>")
    };
    let head: String = table.columns.iter().zip(&numbers).map(head).collect();
    let row = |fields: &Vec<Field>| format!("<tr>{}</tr>\n", fields.iter().map(cell).collect::<String>());
    let rows: String = table.rows.iter().map(row).collect();
    let class = if sortable { "scroll tall" } else { "scroll" };
    format!("<div class=\"{class}\" tabindex=\"0\"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>")
}

fn cell(field: &Field) -> String {
    let shown = short(&field.shown(), LONGEST_TEXT);
    match field {
        Field::Output(text, target) => format!("<td class=\"t\"><div>{}</div></td>", marked(text, target)),
        Field::Text(text) if text.chars().count() > 24 => format!("<td class=\"t\"><div>{shown}</div></td>"),
        Field::Text(_) | Field::Word(_) => format!("<td>{shown}</td>"),
        other => {
            let order = other.order().map_or(String::new(), |value| format!(" data-v=\"{value}\""));
            format!("<td class=\"n\"{order}>{shown}</td>")
        }
    }
}

/// What a model wrote; the words that are not the target's, in order, are marked.
fn marked(text: &str, target: &str) -> String {
    let shorten = |text: &str| abbreviated(&visible(text), LONGEST_TEXT);
    let (text, target) = (shorten(text), shorten(target));
    let (text, target) = (words(&text), words(&target));
    let kept = common(&text, &target);
    let word = |(word, kept): (&&str, bool)| if kept { escaped(word) } else { format!("<mark>{}</mark>", escaped(word)) };
    text.iter().zip(kept).map(word).collect::<String>().replace("</mark><mark>", "")
}

/// A text in words, each with the space before it.
fn words(text: &str) -> Vec<&str> {
    let starts = text.char_indices().filter(|(at, c)| *at > 0 && !c.is_alphanumeric()).map(|(at, _)| at);
    let ends: Vec<usize> = [0].into_iter().chain(starts).chain([text.len()]).collect();
    ends.windows(2).map(|pair| &text[pair[0]..pair[1]]).filter(|word| !word.is_empty()).collect()
}

/// Which of `a` belong to a longest common subsequence with `b`.
fn common(a: &[&str], b: &[&str]) -> Vec<bool> {
    // length[i][j]: of a[i..] and b[j..].
    let mut length = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i][j] = if a[i] == b[j] { length[i + 1][j + 1] + 1 } else { length[i + 1][j].max(length[i][j + 1]) };
        }
    }
    let (mut kept, mut i, mut j) = (vec![false; a.len()], 0, 0);
    while i < a.len() && j < b.len() {
        if a[i] == b[j] {
            kept[i] = true;
            (i, j) = (i + 1, j + 1);
        } else if length[i + 1][j] >= length[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_departs_from_the_target_is_marked_and_inert() {
        assert_eq!(marked("I am <b> here", "I was here"), "I<mark> am &lt;b&gt;</mark> here");
        assert_eq!(marked("same text", "same text"), "same text");
        assert_eq!(marked("", "a"), "");
        assert_eq!(words("a bc, d").concat(), "a bc, d");
    }
}

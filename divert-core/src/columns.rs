//! Tables for people.

/// A titled table with aligned columns.
pub struct Columns {
    title: &'static str,
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// No rows yet.
    pub fn new(title: &'static str, head: &[&str]) -> Self {
        Self { title, rows: vec![head.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// One more; it may have fewer cells than the head.
    pub fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    /// As text, with a line for the title.
    pub fn print(&self) -> String {
        let mut text = format!("{}\n", self.title);
        if self.rows.len() == 1 {
            text.push_str("  none\n");
            return text;
        }
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
            let line = cells.collect::<Vec<_>>().join("  ");
            text.push_str("  ");
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

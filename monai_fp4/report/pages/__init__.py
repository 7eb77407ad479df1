"""The pages of a report: `content` says what stands where, `blocks` is HTML, `write` makes the folder."""

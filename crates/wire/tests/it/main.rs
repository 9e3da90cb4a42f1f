//! Promises to others: golden vectors, the documents, and the fuzz corpora.

mod corpus;
mod golden;

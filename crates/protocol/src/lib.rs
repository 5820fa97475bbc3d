//! OpenAI wire types, their validation and the chat template, without I/O.

"""Between text and tokens: messages, conversations, vocabularies, text that streams out of bytes."""

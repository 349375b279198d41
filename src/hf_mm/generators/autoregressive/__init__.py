"""Pictures written code by code, as a language model writes words, or all codes at once in a few rounds."""

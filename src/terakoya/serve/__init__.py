"""Models over HTTP: OpenAI's and Ollama's ways of asking, a page to talk, and a guard in front of all of it."""

"""The dialects that training logs are written in, one module a family: lines in, records and problems out."""

"""The relay's side of RFC 7504: a socketmap server that tells at RCPT which domains accept no mail (556)."""

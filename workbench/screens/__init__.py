"""One module a screen, imported when it is first opened; each reads the store and hands plain data to widgets."""

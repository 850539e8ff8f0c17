"""Cryptography: the master secret and its subkeys, passwords, API keys, encrypted files. The only
package that imports `Crypto`.

Importing any of its modules checks that pycryptodome is intact, and raises `StartupError` with the
remedy if it is not.
"""

from on_api.core.errors import StartupError

try:
    # pycrypto (dead since 2013) uses the same `Crypto/` folder. Installed besides pycryptodome it
    # overwrites files of it; then this very import fails, while `pip check` sees nothing wrong.
    from Crypto.Protocol.KDF import scrypt as _scrypt  # noqa: F401
except ImportError as error:
    raise StartupError(
        "pycryptodome is damaged: pycrypto was installed over it, or files are missing. To"
        " repair it, run: pip uninstall -y pycrypto && pip install --force-reinstall --no-deps"
        " pycryptodome"
    ) from error

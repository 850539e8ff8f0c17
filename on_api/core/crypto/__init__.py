"""Everything secret: the master secret and its subkeys, passwords, API keys, encrypted files. The
only package that imports `Crypto`.

Importing any module of it proves that pycryptodome is whole, and says the cure where it is not.
"""

from on_api.core.errors import StartupError

try:
    # pycrypto (dead since 2013) owns the same `Crypto/` folder. Installed beside pycryptodome it
    # overwrites files of it, and this very import is what fails then, while `pip check` sees
    # nothing wrong.
    from Crypto.Protocol.KDF import scrypt as _scrypt  # noqa: F401
except ImportError as error:
    raise StartupError(
        "pycryptodome is damaged (pycrypto was installed over it, or it is missing). The cure: "
        "pip uninstall -y pycrypto && pip install --force-reinstall --no-deps pycryptodome"
    ) from error

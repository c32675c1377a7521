"""Downloads the source archive of a package without building it (`pip download` would build it).

usage: fetch_sdist.py PACKAGE VERSION DESTINATION     the registry, its keys and proxies: as pip is set
"""

import shutil
import sys

from pip._internal.commands.download import DownloadCommand

package, version, destination = sys.argv[1:]
command = DownloadCommand("download", "")
options, _ = command.parse_args(["--no-binary", ":all:", package])
with command.main_context():
    session = command.get_default_session(options)
    finder = command._build_package_finder(options, session)
    links = [c.link for c in finder.find_all_candidates(package) if str(c.version) == version]
    if not links:
        sys.exit(f"the registry has no source archive of {package} {version}")
    with session.get(links[0].url.split("#")[0], stream=True) as answer, open(destination, "wb") as out:
        answer.raise_for_status()
        shutil.copyfileobj(answer.raw, out)
        wanted = links[0].hash
if wanted:
    import hashlib

    with open(destination, "rb") as archive:
        seen = hashlib.file_digest(archive, links[0].hash_name).hexdigest() if sys.version_info >= (3, 11) else wanted
    if seen != wanted:
        sys.exit(f"{package} {version}: the archive is damaged")

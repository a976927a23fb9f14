"""White lists for what people mount often: the profile of a browser, mounted at its user-data directory.

Owns the lists, and when one may be laid over a policy: never over white lists that somebody else wrote. It must not know mounts.

The lists are those that AgentBay's SDK makes for a browser context (wuying-agentbay-sdk 0.22): cookies alone, or what keeps a person logged
in, too. What a browser fetches again (caches, models, lists of bad sites) stays on the host.
"""
from __future__ import annotations

from typing import Literal

import msgspec

from ctxfs.errors import UsageError
from ctxfs.policy import BWList, SyncPolicy, WhiteList

Browser = Literal['minimal', 'standard']
_MINIMAL = ('/Local State', '/Default/Cookies', '/Default/Cookies-journal')
_STANDARD = (*_MINIMAL, *(f'/Default/{name}' for name in (
    'Local Storage', 'IndexedDB', 'Session Storage', 'Login Data', 'Login Data-journal', 'Login Data For Account', 'Login Data For Account-journal',
    'Web Data', 'Web Data-journal', 'Preferences', 'Secure Preferences', 'TransportSecurity', 'Network Persistent State', 'GPUCache',
    'Affiliation Database', 'Affiliation Database-journal')))
BROWSER: dict[Browser, BWList] = {'minimal': BWList(white_lists=tuple(WhiteList(path=path) for path in _MINIMAL)),
                                  'standard': BWList(white_lists=tuple(WhiteList(path=path) for path in _STANDARD))}
_EVERYTHING = (BWList(), BWList(white_lists=(WhiteList(),)))


def with_browser(policy: SyncPolicy, preset: Browser | None, *, origin: str) -> SyncPolicy:
    """The policy with the preset's white lists. Raises UsageError where it has others than everything or a preset's."""
    if preset is None:
        return policy
    if policy.bw_list not in (*_EVERYTHING, *BROWSER.values()):
        raise UsageError(f'{origin}: bwList: --browser {preset} brings white lists of its own; leave out --browser, or bwList in the policy')
    return msgspec.structs.replace(policy, bw_list=BROWSER[preset])

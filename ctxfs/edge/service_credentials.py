"""Credentials that systemd hands to a service (LoadCredential=, SetCredentialEncrypted=…): a file of the AWS tools in $CREDENTIALS_DIRECTORY.

Owns its name and that what the environment says otherwise wins. It must not know what is in it: boto3 reads it, again when it changes.
"""
from __future__ import annotations

import os
from collections.abc import MutableMapping

#: the credential's id
NAME = 'aws-credentials'


def use_service_credentials(env: MutableMapping[str, str]) -> None:
    """Make $AWS_SHARED_CREDENTIALS_FILE the credential, where there is one and nothing else is said."""
    directory = env.get('CREDENTIALS_DIRECTORY', '')
    file = os.path.join(directory, NAME)
    if directory and os.path.exists(file):
        env.setdefault('AWS_SHARED_CREDENTIALS_FILE', file)

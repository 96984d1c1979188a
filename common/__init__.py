"""What every script needs: flags, errors, files, processes of Ray."""

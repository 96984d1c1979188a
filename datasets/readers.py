"""READERS names the module that reads each data set; a new set is one more line here."""

from datasets import amigos, ascertain, bci2000, dreamer, eegmat, folder, large_eeg_bci, pspm, way_eeg_gal

READERS = {
    "amigos": amigos,
    "ascertain": ascertain,
    "bci2000": bci2000,
    "dreamer": dreamer,
    "eegmat": eegmat,
    "folder": folder,
    "large_eeg_bci": large_eeg_bci,
    "pspm": pspm,
    "simulated": amigos,  # datasets/simulated.py writes it in the layout of AMIGOS
    "way_eeg_gal": way_eeg_gal,
}

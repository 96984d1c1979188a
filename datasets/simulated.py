"""A simulated cohort in the file layout of AMIGOS, so that everything here runs without licensed recordings.

It demonstrates the software and proves nothing about emotion: the link between ratings and signals is written into
EFFECTS below, so a score on this cohort says only whether the software finds what was put there.

Each modality follows the rating through its own disturbance, which waxes and wanes within a trial, so two modalities
tell more than one. Subjects differ in rhythms, anatomy and responsiveness, so an unseen subject is harder. Every number
here is assumed."""

import json
import shutil
from pathlib import Path

import numpy as np
from scipy.io import savemat
from scipy.signal import butter, sosfiltfilt

RATE = 128  # Hz
SHORT_VIDEOS = ("4", "5", "9", "10", "13", "18", "19", "20", "23", "30", "31", "34", "36", "58", "80", "138")
LONG_VIDEOS = ("N1", "P1", "B1", "U1")

# What one unit of felt arousal or valence (two points of the rating scale) changes; `effect` multiplies all of them.
EFFECTS = {
    "heart_rate": 6.0,  # beats/min, arousal
    "heart_rate_variability": -0.40,  # log amplitude of the 0.1 Hz and irregular parts, arousal
    "respiratory_modulation": 0.60,  # log depth in beat intervals and beat heights, valence
    "alpha_power": -0.32,  # log amplitude, arousal
    "beta_power": 0.26,  # log amplitude, arousal
    "frontal_asymmetry": 0.40,  # log alpha amplitude, right half of it up and left half down, valence
    "skin_responses": 0.40,  # log rate, arousal
}
DISTURBANCE = 1.2  # SD of what each modality follows besides the rating, in units of felt emotion
DISTURBANCE_SECONDS = 8.0  # between its independent values

# One value a channel: AF3 F7 F3 FC5 T7 P7 O1 O2 P8 T8 FC6 F4 F8 AF4.
ALPHA = np.array([5, 6, 6, 5, 4, 7, 9, 9, 7, 4, 5, 6, 6, 5.0])  # uV
BETA = np.full(14, 3.0)  # uV
BLINK = np.array([70, 50, 35, 20, 5, 0, 0, 0, 0, 5, 20, 35, 50, 70.0])  # uV at the peak
HEMISPHERE = np.array([-0.5, -1, -1, -0.5, 0, 0, 0, 0, 0, 0, 0.5, 1, 1, 0.5])  # share of the frontal asymmetry
BACKGROUND, COMMON, LINE = 8.0, 3.0, 1.0  # uV, SD of a channel's own 1/f part and of what all channels share
PASS = butter(4, [4, 45], "bandpass", fs=RATE, output="sos")  # AMIGOS distributes its EEG filtered so

# P, Q, R, S, T: delay from R (s, where a beat lasts 1 s), width (s), log change of height in a filled lung, which
# conducts less and turns the heart (more than in most people), height in the right- and left-arm lead (mV).
WAVES = (
    (-0.17, 0.022, -0.3, 0.10, 0.14),
    (-0.028, 0.009, -0.3, -0.08, -0.12),
    (0.0, 0.011, -0.3, 0.70, 1.10),
    (0.028, 0.010, 0.15, -0.30, -0.25),
    (0.28, 0.045, -0.3, 0.20, 0.30),
)


def draw_person(rng, effect=1.0):
    """Draw what distinguishes one person from another; `response` is EFFECTS as this one shows them, times `effect`."""
    return {
        "heart_rate": rng.normal(70, 4),  # beats/min
        "heart_height": rng.lognormal(0, 0.2),
        "breathing": rng.uniform(0.2, 0.32),  # Hz
        "alpha_frequency": rng.normal(10, 0.6),  # Hz
        "alpha_gain": rng.lognormal(0, 0.15),
        "slope": rng.uniform(0.9, 1.3),  # of the 1/f background
        "asymmetry": rng.normal(0, 0.1),
        "blinks": rng.uniform(6, 16),  # a minute
        "skin": rng.uniform(1.5e5, 3e5),  # ohm
        "channel_gain": rng.lognormal(0, 0.1, 14),
        "response": {name: effect * size * rng.lognormal(0, 0.2) for name, size in EFFECTS.items()},
    }


def draw_ratings(rng, videos):
    """Draw arousal and valence (videos, 2), 1.3 to 8.7: half of each above the middle, the two independent."""
    # Every subject gets the same number of highs, for otherwise a model could profit from recognising the subject.
    order = rng.permutation(videos)
    high = np.stack([order % 2, order // 2 % 2], axis=1)
    return np.round(5 + (2 * high - 1) * rng.uniform(1.0, 3.7, (videos, 2)), 1)


def follow(rng, rating, samples):
    """Return what one modality follows (samples,), in units of felt emotion: the rating plus a slow disturbance of its
    own, bent to stay within 1.5 units."""
    steps = np.arange(0, samples / RATE + DISTURBANCE_SECONDS, DISTURBANCE_SECONDS)
    disturbance = np.interp(np.arange(samples) / RATE, steps, rng.normal(0, DISTURBANCE, len(steps)))
    return 1.5 * np.tanh(((rating - 5) / 2 + disturbance) / 1.5)


def shaped_noise(rng, amplitude, shape):
    """Draw Gaussian noise of unit SD, `shape` (..., samples), with the amplitudes `amplitude(frequency in Hz)`."""
    frequencies = np.fft.rfftfreq(shape[-1], 1 / RATE)
    spectrum = np.fft.rfft(rng.standard_normal(shape)) * amplitude(frequencies) * (frequencies > 0)
    noise = np.fft.irfft(spectrum, shape[-1])
    return noise / noise.std(axis=-1, keepdims=True)


def simulate_eeg(rng, person, arousal, valence):
    """Draw the EEG (samples, 14) in uV of a person who follows `arousal` and `valence` (samples,), felt emotion."""
    samples, response = len(arousal), person["response"]

    def rhythm(centre, width):
        common, own = (shaped_noise(rng, lambda f: np.exp(-0.5 * ((f - centre) / width) ** 2), (channels, samples))
                       for channels in (1, 14))
        return 0.6 * common + 0.8 * own

    def one_over_f(f):
        return np.maximum(f, 0.5) ** (-person["slope"] / 2)

    asymmetry = HEMISPHERE[:, None] * (person["asymmetry"] + response["frontal_asymmetry"] * valence)
    alpha = ALPHA[:, None] * person["alpha_gain"] * np.exp(response["alpha_power"] * arousal + asymmetry)
    beta = BETA[:, None] * np.exp(response["beta_power"] * arousal)
    # Blinks reach the channels as far as they lie in front; a part of the noise and the mains reach all alike.
    time = np.arange(samples) / RATE
    blinks = np.zeros(samples)
    for blink in rng.uniform(0, samples / RATE, rng.poisson(person["blinks"] * samples / RATE / 60)):
        blinks += rng.uniform(0.7, 1.3) * np.exp(-0.5 * ((time - blink) / 0.08) ** 2)
    eeg = alpha * rhythm(person["alpha_frequency"], 0.8) + beta * rhythm(20, 4)
    eeg += BACKGROUND * shaped_noise(rng, one_over_f, (14, samples)) + BLINK[:, None] * blinks
    eeg *= person["channel_gain"][:, None]
    eeg += COMMON * shaped_noise(rng, one_over_f, (1, samples))
    eeg += LINE * np.sin(2 * np.pi * (50 * time + rng.uniform()))
    return sosfiltfilt(PASS, eeg).T


def simulate_ecg(rng, person, arousal, valence):
    """Draw right- and left-arm ECG (samples, 2) in mV, and return its R peaks in s; the rest is as in simulate_eeg."""
    samples, response, margin = len(arousal), person["response"], 2 * RATE
    time = np.arange(-margin, samples + margin) / RATE
    arousal, valence = (np.pad(value, margin, mode="edge") for value in (arousal, valence))

    # Beats come where the phase of the heart, the integral of its rate, is a whole number.
    depth = np.exp(response["respiratory_modulation"] * valence)
    variability = np.exp(response["heart_rate_variability"] * arousal)
    wander = shaped_noise(rng, lambda f: np.exp(-0.5 * (f / 0.05) ** 2), time.shape)
    breathing = np.sin(2 * np.pi * (np.cumsum(person["breathing"] * (1 + 0.1 * wander)) / RATE + rng.uniform()))
    slow = np.sin(2 * np.pi * (0.1 * time + rng.uniform()))
    irregular = shaped_noise(rng, lambda f: f < 0.5, time.shape)
    rate = (person["heart_rate"] + response["heart_rate"] * arousal) / 60  # beats/s
    rate *= 1 + 0.03 * depth * breathing + variability * (0.025 * slow + 0.015 * irregular)
    phase = np.cumsum(rate) / RATE + rng.uniform()
    beats = np.interp(np.arange(1, int(phase[-1])), phase, time)
    interval = np.diff(beats, prepend=2 * beats[0] - beats[1])[:, None]
    filling = np.interp(beats, time, depth * (1 + 0.5 * breathing))[:, None]

    # Each beat adds its waves to the points around it.
    index = np.round(beats * RATE).astype(int)[:, None] + np.arange(-RATE // 2, RATE) + margin
    since = index / RATE - margin / RATE - beats[:, None]
    shape = np.zeros((*index.shape, 2))
    for delay, width, turn, *leads in WAVES:
        wave = np.exp(turn * filling - 0.5 * ((since - delay * np.sqrt(interval)) / width) ** 2)
        shape += wave[..., None] * leads
    inside = (index >= 0) & (index < len(time))
    ecg = np.zeros((len(time), 2))
    np.add.at(ecg, index[inside], shape[inside])
    ecg *= person["heart_height"]
    ecg += (0.1 * breathing + 0.1 * shaped_noise(rng, lambda f: (f < 0.5) / np.maximum(f, 0.05), time.shape))[:, None]
    ecg += 0.02 * rng.standard_normal(ecg.shape)
    return ecg[margin:-margin], beats[(beats >= 0) & (beats < samples / RATE)]


def simulate_gsr(rng, person, arousal):
    """Draw skin resistance (samples,) in ohm: a drifting level with dips at random moments, more when aroused."""
    samples = len(arousal)
    rate = 4 / 60 * np.exp(person["response"]["skin_responses"] * arousal)
    onsets = rng.random(samples) < rate / RATE
    after = np.arange(0, 20, 1 / RATE)
    dip = np.exp(-after / 4) - np.exp(-after / 0.7)
    dips = np.convolve(onsets * rng.lognormal(0, 0.4, samples), dip)[:samples]
    drift = shaped_noise(rng, lambda f: np.exp(-0.5 * (f / 0.05) ** 2), (samples,))
    return person["skin"] * (1 + 0.01 * drift - 0.04 * dips) + rng.normal(0, 20, samples)


def write_person(path, rng, rated, seconds, effect, said):
    """Write one Data_Preprocessed_Pxx.mat with videos of `seconds`; `said` goes into its variable `simulated`."""
    person, videos = draw_person(rng, effect), len(seconds)
    ratings = draw_ratings(rng, videos)
    names = [*rng.permutation(SHORT_VIDEOS), *rng.permutation(LONG_VIDEOS)]
    # A cell that holds no video or no rating is empty as AMIGOS has it.
    cells = {"joined_data": [np.empty((0, 0))] * 20, "labels_selfassessment": [np.empty((1, 0))] * 20,
             "labels_ext_annotation": [np.empty((0, 0))] * 20, "VideoIDs": [str(name) for name in names]}
    for video in range(videos):
        # Each modality follows the ratings in its own way.
        samples = round(seconds[video] * RATE)
        (ecg_arousal, ecg_valence), (eeg_arousal, eeg_valence), (gsr_arousal, _) = (
            [follow(rng, rating, samples) for rating in ratings[video]] for _ in range(3))
        eeg = simulate_eeg(rng, person, eeg_arousal, eeg_valence)
        ecg, _ = simulate_ecg(rng, person, ecg_arousal, ecg_valence)
        cells["joined_data"][video] = np.column_stack([eeg, ecg, simulate_gsr(rng, person, gsr_arousal)])
        if rated:
            others, emotions = np.round(rng.uniform(1, 9, 3), 1), rng.integers(0, 2, 7)
            cells["labels_selfassessment"][video] = np.concatenate([ratings[video], others, emotions])[None]
    savemat(path, {**{name: np.fromiter(own, object, 20)[None] for name, own in cells.items()}, "simulated": said})
    # The first 116 bytes are free text, where SciPy puts the date.
    with open(path, "r+b") as file:
        file.write(b"MATLAB 5.0 MAT-file, simulated cohort in the layout of AMIGOS".ljust(116))


def write_cohort(folder, subjects=8, unrated_subjects=4, videos=16, seconds=50, effect=1.0, seed=0):
    """Write `folder`/Data_Preprocessed_P01.mat and so on, all or nothing; the same arguments give the same bytes.

    The `unrated_subjects` come last. `effect` multiplies EFFECTS: at 0 the signals know nothing of the ratings. A
    variable `simulated` in each file, and simulated.json, hold the arguments. Return whether it was written: this very
    cohort is left as it is. Raise FileExistsError where something else is there, ValueError for a wrong argument."""
    limits = {"subjects": (subjects, 1, 99), "unrated_subjects": (unrated_subjects, 0, 99), "videos": (videos, 1, 20),
              "seconds": (seconds, 10, 3600), "effect": (effect, 0, 2), "seed": (seed, 0, 2**63)}
    for name, (value, least, most) in limits.items():
        if not least <= value <= most:
            raise ValueError(f"simulated cohort: {name} must be from {least} to {most}, found {value}")
    folder = Path(folder)
    said = json.dumps({"subjects": subjects, "unrated_subjects": unrated_subjects, "videos": videos,
                       "seconds": float(seconds), "effect": float(effect), "seed": seed, "effects": EFFECTS})
    note = folder / "simulated.json"
    if folder.exists() and any(folder.iterdir()):
        if note.exists() and note.read_text() == said:
            return False
        expected = f"to be absent, empty or the very cohort asked for ({said})"
        raise FileExistsError(f"{folder}: expected {expected}, found other files; remove it or name another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        for subject in range(subjects + unrated_subjects):
            write_person(partial / f"Data_Preprocessed_P{subject + 1:02d}.mat", np.random.default_rng([seed, subject]),
                         subject < subjects, [seconds] * videos, effect, said)
        (partial / note.name).write_text(said)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True

from agents import trqam


def get_config():
    config = trqam.get_config()
    del config["kl_budget"], config["lam_scale"]
    return config | {"inv_temp": 0.3}

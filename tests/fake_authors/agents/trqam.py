NAMES = (
    "lr", "batch_size", "clip_grad", "actor_hidden_dims", "actor_layer_norm", "flow_steps",
    "horizon_length", "action_chunking", "value_hidden_dims", "value_layer_norm", "num_qs", "rho",
    "discount", "tau", "best_of_n", "target_actor", "clip_adj", "use_target_grad", "kl_budget",
    "lam_scale", "eta_lambda", "kl_ema_coef", "lambda_min", "lambda_max", "kl_clip_coef",
)  # fmt: skip


def get_config():
    return dict.fromkeys(NAMES)

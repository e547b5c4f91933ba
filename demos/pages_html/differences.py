"""The paper and its released code: where they differ, the default here, how to get the other, and the test that shows it.

The released code is hojonathanho/diffusion at 1e0dceb, its files named without their folder.  The table in minddpm/README.md is
made from this one.
"""

from typing import NamedTuple


class Difference(NamedTuple):
    """One place where they differ; backquotes mark code."""

    subject: str
    paper: str
    code: str
    default: str            # the behaviour of minddpm
    other: str              # how to get the other behaviour
    test: str               # the name of a test


DIFFERENCES = [
    Difference("Clipping of x̂_0", "Alg. 2 has none, nor has Eq. (5)",
               "x̂_0 clipped to [−1, 1], the mean is Eq. (7) at it; in sampling and in bits/dim (diffusion_utils_2.py:149-165)",
               "the code's, with which the released weights were evaluated", "`clip=False`; `minddpm sample --no-clip`",
               "test_alg2_clipping_changes_the_samples_and_the_bound"),
    Difference("Clipping under μ̃ prediction", "none", "the mean stays the network's output, x̂_0 is clipped for display only",
               "the mean is Eq. (7) at the clipped x̂_0, as under ε prediction", "`clip=False`, whose mean is the output",
               "test_table2_clipping_under_mu_prediction"),
    Difference("Normal CDF in Eq. (13)", "the integral", "a tanh approximation, not below 1e-12 (utils.py:112-133)",
               "the paper's, finite at any distance", '`cdf="tanh"`', "test_eq13_tanh_is_the_released_codes_approximation"),
    Difference("σ_1² in Eq. (13)", "β_1 for σ_t² = β_t; β̃_1 = 0 would be no density",
               "β̃_2 for either choice (diffusion_utils_2.py:139-146)", 'β_1 for "beta", β̃_2 for "beta_tilde"',
               "`decoder_var=s.beta_tilde[2]`; `minddpm evaluate` prints both",
               "test_eq13_L_0_of_the_bound_for_each_choice_of_sigma_1"),
    Difference("σ_t² of the 256×256 models", "β_t or β̃_t, similar results", "β_t for CIFAR10, β̃_t for 256×256",
               "β_t", '`sigma2="beta_tilde"`; `--sigma2 beta_tilde`', "test_sec32_sigma2_is_beta_or_beta_tilde"),
    Difference("The first step of the EMA", "decay 0.9999",
               "meant to copy at the first step (nothing there fixes the order), then decay 0.9999 (tpu_utils.py:89-92)",
               "a copy at the first step, then decay 0.9999",
               "an average that begins at the initial weights, updated from step 2 on",
               "test_appb_ema_that_begins_with_a_copy_forgets_the_initial_weights"),
    Difference("Warm-up of the learning rate", "none",
               "linear over 5,000 steps, the first of them with learning rate 0 (utils.py:145-148)",
               "the code's, one step ahead: no step has learning rate 0; 50 steps in the small presets", "`--warmup 0`",
               "test_appb_warm_up_is_what_the_flag_says"),
    Difference("Gradient clipping", "none", "each of 8 shards' gradient to norm 1/8, then the sum (tpu_utils.py:160-164)",
               "the whole batch's gradient to norm 1", "no clipping: `--grad-clip 1e9`; by shard: not offered",
               "test_appb_clipping_by_shard_is_not_clipping_of_the_sum"),
    Difference("Last convolutions at the start", "not mentioned", "1e-10 of the others' variance, not 0 (nn.py:10-11)",
               "the code's", "weights of your own in the tree that `init` returns",
               "test_appb_weights_of_1e_10_let_every_gradient_through"),
    Difference("Quadratic and constant schedules", "named, without a formula",
               "√β_t from √β_1 to √β_T in equal steps; β_t = β_T (diffusion_utils.py:22-38)", "the code's",
               "`Schedule(beta)` with a table of your own", "test_appB_schedules_are_linear_quadratic_and_constant"),
    Difference("Horizontal flips", "all sets but LSUN Bedroom", "all but LSUN Cat (run_lsun.py:12-13)",
               "on in the presets cifar10 and image256, whatever the set", "`--no-flips`",
               "test_appb_flips_are_what_the_flag_says"),
    Difference("Training steps, LSUN Church", "1.2 million", "the released weights are of step 4,432,000",
               "`image256` has CelebA-HQ's 500,000", "`--steps`", "test_appb_steps_are_what_the_flag_says"),
    Difference("What interpolation mixes", "x_0 and x_0', as printed in Sec. 4.4", "x_t and x_t' (diffusion_utils.py:258-299)",
               "the code's, which Fig. 8 shows", "`q_sample` of the mixed images, then Alg. 2 from there",
               "test_sec44_mixes_x_t_and_not_x_0"),
    Difference("Images scored in bits/dim", "the test set", "whole batches of 256 only: 9,984 of 10,000 (simple_eval_worker.py)",
               "every image", "the first 9,984 of them", "test_table1_every_image_counts"),
    Difference("Adam's ε", '"standard values"; Kingma and Ba add it to √v̂', "TensorFlow 1 adds it to √v",
               "Kingma and Ba's", "`eps=1e-8 / (1 - beta2**step)**0.5`",
               "test_appb_adams_epsilon_is_tensorflows_after_rescaling"),
    Difference("‖ε − ε_θ‖² in Eq. (14)", "the squared norm", "the mean over an image's D numbers (nn.py:112)",
               "the code's: an untrained network's loss is 1", "multiply by D", "test_eq14_is_the_squared_error_of_the_noise"),
    Difference("t", "1, …, T", "0, …, T − 1", "the paper's everywhere but inside the network's embedding of t", "`t - 1`",
               "test_timestep_embedding_counts_from_zero"),
]

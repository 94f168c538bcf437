"""
The code of the tasks in `lm_eval_tasks/`, which name its functions: `!function sdrrl_trl.tasks.choice.score`.

`_generate.py --upstream` copies out of these files what a folder needs, so their names must differ from file to file.
"""

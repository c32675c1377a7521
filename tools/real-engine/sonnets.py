"""Prompts of the sonnet data set that `vllm bench serve` had, as JSON lines for its `custom` one: so many lines of
Shakespeare's sonnets as make the wanted number of tokens, after a first part that all prompts share.

usage: sonnets.py TOKENIZER PROMPTS INPUT_TOKENS [PREFIX_TOKENS [SEED]]     needs transformers
"""

import json
import random
import sys

from transformers import AutoTokenizer

ASK = "Pick as many lines as you can from these poem lines:\n"
SONNETS = """\
From fairest creatures we desire increase,
That thereby beauty's rose might never die,
But as the riper should by time decease,
His tender heir might bear his memory:
Shall I compare thee to a summer's day?
Thou art more lovely and more temperate:
Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date:
Sometime too hot the eye of heaven shines,
And often is his gold complexion dimm'd;
And every fair from fair sometime declines,
By chance, or nature's changing course, untrimm'd;
But thy eternal summer shall not fade
Nor lose possession of that fair thou ow'st;
Nor shall Death brag thou wander'st in his shade,
When in eternal lines to time thou grow'st:
So long as men can breathe or eyes can see,
So long lives this, and this gives life to thee.
When, in disgrace with fortune and men's eyes,
I all alone beweep my outcast state,
And trouble deaf heaven with my bootless cries,
And look upon myself and curse my fate,
Wishing me like to one more rich in hope,
Featur'd like him, like him with friends possess'd,
Desiring this man's art and that man's scope,
With what I most enjoy contented least;
Yet in these thoughts myself almost despising,
Haply I think on thee, and then my state,
Like to the lark at break of day arising
From sullen earth, sings hymns at heaven's gate;
For thy sweet love remember'd such wealth brings
That then I scorn to change my state with kings.
When to the sessions of sweet silent thought
I summon up remembrance of things past,
I sigh the lack of many a thing I sought,
And with old woes new wail my dear time's waste:
Not marble, nor the gilded monuments
Of princes, shall outlive this powerful rhyme;
But you shall shine more bright in these contents
Than unswept stone, besmear'd with sluttish time.
Like as the waves make towards the pebbled shore,
So do our minutes hasten to their end;
Each changing place with that which goes before,
In sequent toil all forwards do contend.
That time of year thou mayst in me behold
When yellow leaves, or none, or few, do hang
Upon those boughs which shake against the cold,
Bare ruin'd choirs, where late the sweet birds sang.
Let me not to the marriage of true minds
Admit impediments. Love is not love
Which alters when it alteration finds,
Or bends with the remover to remove:
O no; it is an ever-fixed mark,
That looks on tempests, and is never shaken;
It is the star to every wandering bark,
Whose worth's unknown, although his height be taken.
Love's not Time's fool, though rosy lips and cheeks
Within his bending sickle's compass come;
Love alters not with his brief hours and weeks,
But bears it out even to the edge of doom.
If this be error and upon me proved,
I never writ, nor no man ever loved.
My mistress' eyes are nothing like the sun;
Coral is far more red than her lips' red;
If snow be white, why then her breasts are dun;
If hairs be wires, black wires grow on her head.
""".splitlines(True)


def main():
    given, defaults = sys.argv[1:], ["", "", "", "200", "0"]
    name, prompts, tokens, prefix, seed = given + defaults[len(given) :]
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokens, prefix = int(tokens), int(prefix)
    lengths = {line: len(tokenizer(line, add_special_tokens=False).input_ids) for line in SONNETS}
    asked = len(tokenizer(ASK, add_special_tokens=False).input_ids)
    dice = random.Random(int(seed))
    for _ in range(int(prompts)):
        lines, size = [], asked
        while True:
            # The first lines are those of every prompt, the others are drawn.
            line = SONNETS[len(lines) % len(SONNETS)] if size < prefix else dice.choice(SONNETS)
            if size + lengths[line] > tokens:
                break
            lines, size = lines + [line], size + lengths[line]
        print(json.dumps({"prompt": ASK + "".join(lines)}))


if __name__ == "__main__":
    main()

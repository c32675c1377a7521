//! By tokens: the engines tokenize or render, P prefills token ids on the completions path, and D goes on from
//! P's token where that can be.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use crate::config::lmcache::Variant;
use crate::config::{FirstTokenSource, Role};
use crate::error::{Error, Kind, Stage};
use crate::exchange::first_token::First;
use crate::exchange::{Answer, Exchange, Leg, Picked, Request, Stop};
use crate::wire::continued::Opening;
use crate::wire::first_token::Token;
use crate::wire::json::{Edit, Piece};
use crate::wire::lmcache::{self as wire, Tokens};
use crate::wire::openai::{self, KV_PARAMS};

use super::arrival::{Transfer, set_params};
use super::{Lmcache, Next};

const COMPLETIONS: &str = "/v1/completions";
/// What engines generate if a completion names no limit.
const USUAL_TOKENS: u64 = 16;

impl Lmcache {
    /// P gets the tokens that it rendered itself; D gets the chat.
    pub(super) async fn by_render(
        &self,
        x: &Exchange,
        request: &Request,
        prefill: Picked,
        decode: Picked,
        transfer: Option<Transfer>,
    ) -> Result<Next, Stop> {
        let mut leg = Leg::new(Stage::Prefill);
        leg.path = Some("/v1/chat/completions/render".into());
        leg.edits.push(Edit::Remove(KV_PARAMS));
        leg.plain_answer = true;
        let at = Some(prefill.instance().index);
        let rendered = x.call(x.pick_again(Role::Prefill, at)?, leg).await?;
        let tokens = tokens_of(&rendered)?;
        let mut leg = x.prefill_leg();
        leg.path = Some(COMPLETIONS.into());
        leg.pieces = Some(vec![Piece::Own(
            prefill_body(request, &tokens, &transfer).into(),
        )]);
        let answer = x.call(prefill, leg).await?;
        self.arrived(x, &transfer, &answer).await?;
        Ok(Next::Pass(
            decode,
            self.decode_leg(transfer.as_ref()),
            First::Decode,
        ))
    }

    /// Tokens to both, on the completions path; D goes on from P's token if it can.
    pub(super) async fn by_tokens(
        &self,
        x: &Exchange,
        request: &Request,
        prefill: Picked,
        decode: Picked,
        transfer: Option<Transfer>,
        chat: bool,
    ) -> Result<Next, Stop> {
        let (body, object) = (request.body(), &request.object);
        if chat && let Some(what) = wire::lost_without_chat(body, object) {
            let what = format!(
                "{what} cannot be told by way of /v1/completions, which this proxy uses for chats: the \
                 engines need their chat path (lmcache.chat: native)"
            );
            return Err(Error::new(Kind::BadRequest, Stage::Body, what).into());
        }
        let ask = wire::continues(body, object, request.summary.prompts, chat);
        let first = self.section.first_token == FirstTokenSource::Prefill
            && self.section.variant != Variant::Plain;
        let ask = ask.filter(|_| first);
        let (tokens, context) = self.tokenize(x, request, &prefill, &decode, chat).await?;
        let limit = request.summary.max_tokens.or(match chat {
            true => context.map(|context| context.saturating_sub(tokens.count as u64)),
            false => Some(USUAL_TOKENS),
        });

        let mut leg = x.prefill_leg();
        leg.path = Some(COMPLETIONS.into());
        leg.edits
            .retain(|edit| !matches!(edit, Edit::Replace("max_completion_tokens", _)));
        leg.edits.push(Edit::Remove("stream_options"));
        set_prompt(&mut leg, &tokens, None);
        set_params(&mut leg, &transfer, ask.is_some());
        let answer = x.call(prefill, leg).await?;

        let (said, index) = (answer.body(), answer.object());
        let token = Token::of(said, index, false);
        if let Some(ask) = ask
            && let Some(token) = &token
            && (limit == Some(1) || token.ended())
        {
            return Ok(Next::Done(answer, ask));
        }
        self.arrived(x, &transfer, &answer).await?;
        let stop = object.get(body, "stop");
        let token = token.filter(|token| ask.is_some() && token.whole(stop));
        let token = token.zip(wire::first_tok(said, index));
        let choices = openai::count(object.get(body, "n"))
            .unwrap_or(1)
            .clamp(1, 1024) as u32;
        let opening = Opening::of(said, index, chat, token.as_ref().map(|(t, _)| t), choices);

        let mut leg = self.decode_leg(transfer.as_ref());
        leg.path = Some(COMPLETIONS.into());
        leg.plain_answer = true;
        set_prompt(&mut leg, &tokens, token.as_ref().map(|(_, id)| *id));
        if let Some(limit) = limit.filter(|_| chat || token.is_some()) {
            let left = limit.saturating_sub(u64::from(token.is_some()));
            leg.edits.push(Edit::Set(
                "max_tokens",
                Cow::Owned(left.to_string().into_bytes()),
            ));
        }
        match chat || token.is_some() {
            true => Ok(Next::Go(decode, leg, Box::new(opening))),
            false => Ok(Next::Pass(decode, leg, First::Decode)),
        }
    }

    /// The prompt's tokens, and how many fit into the model, where that is said.
    async fn tokenize(
        &self,
        x: &Exchange,
        request: &Request,
        prefill: &Picked,
        decode: &Picked,
        chat: bool,
    ) -> Result<(Tokens, Option<u64>), Stop> {
        let prompt = request
            .object
            .get(request.body(), "prompt")
            .filter(|_| !chat);
        if let Some(tokens) = prompt.and_then(Tokens::of) {
            return Ok((tokens, None));
        }
        // Both roles can, and each takes its share.
        let (p, d) = (
            x.members(Role::Prefill).len(),
            x.members(Role::Decode).len(),
        );
        let turn = self.turns.fetch_add(1, Ordering::Relaxed) as usize;
        let (role, near) = match turn % (p + d).max(1) < p {
            true => (Role::Prefill, prefill),
            false => (Role::Decode, decode),
        };
        let mut leg = Leg::new(Stage::Prefill);
        leg.path = Some("/tokenize".into());
        let body = wire::tokenize_body(request.body(), &request.object, chat);
        leg.pieces = Some(vec![Piece::Own(body.into())]);
        leg.plain_answer = true;
        let answer = x
            .call(x.pick_again(role, Some(near.instance().index))?, leg)
            .await?;
        let context = wire::whole_number(answer.body(), answer.object(), "max_model_len");
        Ok((tokens_of(&answer)?, context))
    }
}

fn tokens_of(answer: &Answer) -> Result<Tokens, Stop> {
    Tokens::of_answer(answer.body(), answer.object()).ok_or_else(|| {
        let what = "its answer has no list of token ids";
        let error = Error::new(Kind::BadResponse, Stage::Prefill, what);
        Stop::Again(error.at(&answer.instance.name))
    })
}

fn set_prompt(leg: &mut Leg, tokens: &Tokens, more: Option<u64>) {
    leg.edits.extend(wire::CHAT_ONLY.map(Edit::Remove));
    leg.edits
        .push(Edit::Set("prompt", Cow::Owned(tokens.prompt(more))));
}

/// A prefill of these tokens, with what of a chat decides where its KV belongs.
fn prefill_body(request: &Request, tokens: &Tokens, transfer: &Option<Transfer>) -> Vec<u8> {
    let to = transfer
        .as_ref()
        .map(|t| (t.ticket.id.as_str(), &t.receiver));
    let kept = ["model", "cache_salt", "priority"]
        .into_iter()
        .filter_map(|key| {
            let value = request.object.get(request.body(), key)?;
            Some((key, value.to_vec()))
        });
    let prompt = [("prompt", tokens.prompt(None))];
    let params = to.map(|to| (KV_PARAMS, wire::params(false, Some(to))));
    openai::one_token(kept.chain(prompt).chain(params))
}

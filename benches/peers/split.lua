-- Batches split by id in a few dozen lines of Lua: what is known comes from a shared dictionary, the rest is asked of
-- the endpoint in one call, and an id that another batch is fetching already is waited for.
--
-- It is what one would write in an afternoon, written for speed. It does not do the rest of what sidelink does:
-- absent ids, stale links for a failing endpoint, revoked tokens, limits, retries, metrics.
local cjson = require "cjson.safe"
local semaphore = require "ngx.semaphore"

local links = ngx.shared.links
local LONGEST = 86400 -- seconds that a link is kept
local REMAINING = 60 -- seconds of its own life that it must have left
local DEADLINE = 10 -- seconds that a batch waits for another's call

-- Key → the call that fetches it. One worker, so a plain table will do.
local in_flight = {}

-- Asks the endpoint for `ids` and keeps what it says; nil, or the endpoint's own answer if it is no list of links.
local function fetch(scope, ids, group)
    local answer = ngx.location.capture("/ask", { args = { accessory_ids = ids, group_id = group } })
    local body = answer.status == 200 and cjson.decode(answer.body)
    if not body or type(body.accessory_urls) ~= "table" then
        return answer
    end
    for _, item in ipairs(body.accessory_urls) do
        local expires = tonumber(item.accessory_url:match("[?&]Expires=(%d+)"))
        local life = math.min(expires and expires - ngx.time() - REMAINING or REMAINING, LONGEST)
        if life > 0 then
            -- This cjson escapes slashes.
            links:set(scope .. item.accessory_id, (cjson.encode(item):gsub("\\/", "/")), life)
        end
    end
end

-- Fills in the items that are lacking.
local function fill(scope, ids, group, items, lacking)
    local own, joined = {}, {}
    local call = { landed = false, bell = semaphore.new() }
    for _, at in ipairs(lacking) do
        local key = scope .. ids[at]
        local flight = in_flight[key]
        if flight == nil then
            own[#own + 1] = ids[at]
            in_flight[key] = call
        elseif flight ~= call then
            joined[flight] = true
        end
    end
    local failure
    if #own > 0 then
        failure = fetch(scope, own, group)
        for _, id in ipairs(own) do
            in_flight[scope .. id] = nil
        end
        call.landed = true
        local waiting = -call.bell:count()
        if waiting > 0 then
            call.bell:post(waiting)
        end
    end
    for flight in pairs(joined) do
        if not flight.landed then
            flight.bell:wait(DEADLINE)
        end
    end
    for _, at in ipairs(lacking) do
        items[at] = links:get(scope .. ids[at])
    end
    return failure
end

local function say(status, body, length)
    ngx.status = status
    ngx.header.content_type = "application/json"
    ngx.header.content_length = length
    ngx.print(body)
end

local split = {}

function split.answer()
    local token = ngx.var.http_x_auth_token
    local args = ngx.req.get_uri_args(0)
    local ids, group = args.accessory_ids, args.group_id
    if type(ids) ~= "table" then
        ids = { ids }
    end
    if not token or #ids == 0 then
        return say(400, "{}", 2)
    end
    local scope = token .. "\0" .. (group or "") .. "\0"
    local items, lacking = {}, {}
    for at = 1, #ids do
        local item = links:get(scope .. ids[at])
        items[at] = item or false
        if not item then
            lacking[#lacking + 1] = at
        end
    end
    if #lacking > 0 then
        local failure = fill(scope, ids, group, items, lacking)
        if failure then
            return say(failure.status, failure.body, #failure.body)
        end
    end

    local body, length = { '{"accessory_urls":[' }, 21
    for at = 1, #ids do
        local item = items[at]
        if not item then
            return say(502, "{}", 2)
        end
        if at > 1 then
            body[#body + 1] = ","
            length = length + 1
        end
        body[#body + 1] = item
        length = length + #item
    end
    body[#body + 1] = "]}"
    say(200, body, length)
end

return split
